"""model.onnx computes what the model does, for any batch and length, with standard operators only."""

import json

import pytest
import torch

from tests.export.helpers import ARCHITECTURES, batch, first_outputs, make, save
from ultrafastbert.cli import main
from ultrafastbert.export import onnx as export
from ultrafastbert.export.graph import compare
from ultrafastbert.export.loading import HEADS
from ultrafastbert.export.unrolled import UnrolledLeaves, UnrolledTrees, unroll
from ultrafastbert.utils.errors import UserError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

HEADS_IN_ONNX = [head for head in HEADS if head != "UltraFastBertModel"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_unrolled_models_compute_the_same(kind):
    model = make("UltraFastBertModel", **ARCHITECTURES[kind])
    unrolled = unroll(model)
    kinds = {type(module) for module in unrolled.modules()}
    assert (UnrolledTrees in kinds) == (kind == "tree") and (UnrolledLeaves in kinds) == (kind in ("leaves", "bert"))
    with torch.no_grad():
        torch.testing.assert_close(first_outputs(unrolled(**batch())), first_outputs(model(**batch())))


@pytest.mark.parametrize("trees", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_unrolled_trees_of_all_sizes(trees, depth, bias):
    from ultrafastbert import FFF

    torch.manual_seed(0)
    layer = FFF(8, depth, trees, bias)
    if bias:
        torch.nn.init.normal_(layer.bias_in)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(UnrolledTrees(layer)(x), layer(x))


def session_of(model, path, **options):
    export.write_graph(model, path, **options)
    onnx.checker.check_model(str(path))
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session, inputs):
    return [torch.from_numpy(output) for output in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "kind"), [("UltraFastBertModel", kind) for kind in ARCHITECTURES] + [(h, "tree") for h in HEADS_IN_ONNX]
)
def test_graphs_compute_the_same_for_other_batches_and_lengths(head, kind, tmp_path):
    model = make(head, num_hidden_layers=1, **ARCHITECTURES[kind])
    session = session_of(model, tmp_path / "model.onnx")
    with torch.no_grad():
        inputs = batch(model)
        names = [output.name for output in session.get_outputs()]
        assert names == list(model(**inputs).keys())
        for sequences, length in ((3, 11), (1, 7), (2, 1), (1, 1)):
            cut = {name: tensor[:sequences, ..., :length] for name, tensor in inputs.items()}
            outputs, expected = run(session, cut), first_outputs(model(**cut))
            torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_command_writes_a_checked_graph_with_its_tokenizer(tmp_path, capsys):
    model = make("UltraFastBertForSequenceClassification", fff_depth=8, num_labels=3)
    main(argv=["export", "onnx", "--model", str(save(model, tmp_path / "in")), "--output_dir", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "compared with PyTorch on 12 sequences: largest difference" in out
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]) == 3
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    assert [(o.domain, o.version) for o in graph.opset_import if o.domain in ("", "ai.onnx")] == [("", export.OPSET)]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    torch.testing.assert_close(run(session, batch()), first_outputs(model(**batch())), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_int8_quantizes_the_projections_and_nothing_else(tmp_path):
    model = make("UltraFastBertForMaskedLM", feedforward="dense", intermediate_size=24, initializer_range=0.1)
    session = session_of(model, tmp_path / "model.onnx", int8=True)
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("MatMulInteger") == 2 * 4  # qkv, o, up and down of two layers, not the decoder
    with torch.no_grad():
        expected = model(**batch()).logits
    (output,) = run(session, batch())
    error = (output - expected)[batch()["attention_mask"].bool()].norm() / expected.norm()
    assert 1e-5 < error < 0.1


@pytest.mark.slow
def test_wrong_graphs_are_refused(tmp_path, capsys, monkeypatch):
    """The check finds a graph of other weights, and the command then writes nothing."""
    model, other = make(fff_depth=8), make(fff_depth=8)
    with torch.no_grad():
        other.layers[1].feedforward.weight_out.mul_(1.5)
    export.write_graph(other, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"wrong by more than tolerance \(0.001\), so it is not written"):
        compare(model, export.load_graph(tmp_path / "model.onnx"), 1e-3, "model.onnx")
    assert "largest difference" in compare(other, export.load_graph(tmp_path / "model.onnx"), 1e-3, "model.onnx")

    write = export.write_graph
    monkeypatch.setattr(export, "write_graph", lambda model, *rest: write(other, *rest))
    with pytest.raises(SystemExit):
        main(argv=["export", "onnx", "--model", str(save(model, tmp_path / "in")), "--output_dir", f"{tmp_path}/out"])
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(SystemExit):
        main(argv=["export", "onnx", "--model", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert "needs no_such_package: pip install 'ultrafastbert[export]'" in capsys.readouterr().err
