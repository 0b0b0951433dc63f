"""Models of sentence-transformers are compared on similarity, retrieval and speed."""

import json

import pytest
import torch

from tests.distillation.helpers import BERT, WORDS, save_teacher
from tests.scripts.helpers import load_script
from ultrafastbert.utils.errors import UserError


@pytest.fixture(scope="module")
def script():
    return load_script("evaluate_sentences")


def save(directory, seed):
    """An encoder with the files of sentence-transformers; weights depend on the seed."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(seed)
    save_teacher(directory / "encoder", **(BERT | {"initializer_range": 0.4 + seed, "max_position_embeddings": 130}))
    encoder = Transformer(str(directory / "encoder"))
    SentenceTransformer(modules=[encoder, Pooling(16, "mean")]).save(str(directory / "model"))
    return str(directory / "model")


def write(tmp_path):
    triples = [WORDS[index : index + 3] for index in range(30)]
    pairs = [(f"{a} {b}", f"{b} {c}", index % 5) for index, (a, b, c) in enumerate(triples)]
    lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, pair)) for pair in pairs)]
    (tmp_path / "sts.tsv").write_text("\n".join(lines) + "\n")
    documents = [
        {"title": f"{a} {b}", "text": f"{a} {b} {a} {b}"} for a, b in zip(WORDS[::2], WORDS[1::2], strict=True)
    ]
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return str(tmp_path / "sts.tsv"), str(tmp_path / "documents.jsonl")


def test_models_are_compared_with_the_first(script, tmp_path, capsys):
    models = [save(tmp_path / "a", 0), save(tmp_path / "b", 1)]
    sts, documents = write(tmp_path)
    script.main(script.EvaluateArguments(models, sts, documents, seconds=0.01, output_dir=str(tmp_path / "out")))
    results = json.loads((tmp_path / "out" / "sentences.json").read_text())["results"]
    assert results[models[0]]["cosine"] == pytest.approx(1, abs=1e-5) and results[models[1]]["cosine"] < 0.999
    for values in results.values():
        assert 0 < values["recall@1"] <= values["mrr"] <= 1 and -1 <= values["spearman"] <= 1 and values["1x128"] > 0
    assert (tmp_path / "out" / "sentences.md").read_text() in capsys.readouterr().out


def test_quality_by_hand(script):
    """The second title is closer to the first text than to its own."""
    eye = torch.eye(2)
    near_first = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.5]]), dim=1)
    vectors = {"first": eye, "second": near_first, "titles": near_first, "texts": eye}
    found = script.quality(vectors, vectors | {"first": eye.flip(0)}, [2.0, 1.0])
    assert found["recall@1"] == 0.5 and found["mrr"] == 0.75 and found["cosine"] == pytest.approx(6 / 8)
    assert found["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("content, match", [('{"title": "a"}', "title and text"), ("no JSON", "title and text")])
def test_other_documents_are_refused(script, tmp_path, content, match):
    (tmp_path / "documents.jsonl").write_text(content)
    with pytest.raises(UserError, match=match):
        script.read_documents(tmp_path / "documents.jsonl")


def test_scores_that_are_no_numbers_are_refused(script, tmp_path):
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\na\tb\tmany\n")
    with pytest.raises(UserError, match="numbers in the column score"):
        script.read_pairs(tmp_path / "sts.tsv")
