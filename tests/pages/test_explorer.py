"""`ultrafastbert inspect --html`: the page has the paths of tokens and the tokens of leaves that the model has."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tests.pages.helpers import HOSTILE, check_page, needs_chromium, visit
from ultrafastbert.cli import main
from ultrafastbert.inspection import explore
from ultrafastbert.inspection.loading import load_encoder
from ultrafastbert.inspection.summary import trace
from ultrafastbert.layers.usage import observe_inputs, tree_layers

TEXTS = ["w1 w2 w3 w4", "w1 w7 w7 w9", "w3 w2 w1"]


@pytest.fixture
def command(capsys, tmp_path):
    """Runs the command; returns the page, parsed."""

    def command(*models, texts=TEXTS, output=tmp_path / "pages" / "page.html"):
        words = [*map(str, models), "--text", *texts, "--output_dir", str(tmp_path / "out"), "--html", str(output)]
        main("inspect", words)
        assert capsys.readouterr().out.endswith(f"trees.json, {output}\n")
        return check_page(output.read_bytes())

    return command


@pytest.fixture
def checkpoints(small_run):
    return [small_run / "checkpoints" / f"step-{step}" for step in (4, 12)]


def inputs_of_layers(encoder, text):
    """The input of each layer of trees, `(tokens, hidden)`."""
    layers, taken = tree_layers(encoder.model), {}
    with torch.no_grad(), observe_inputs(layers, lambda index, x: taken.update({index: x[0]})):
        encoder.model(**encoder.tokenizer(text, return_tensors="pt"))
    return [taken[index] for index in range(len(layers))]


def test_paths_are_those_of_the_model(command, checkpoints):
    page = command(*checkpoints)
    assert [text["text"] for text in page.data["texts"]] == TEXTS
    assert page.data["layers"] == 2 * [{"trees": 2, "shown_trees": 2, "depth": 3, "leaf_size": None}]
    for name, model in zip(checkpoints, page.data["models"], strict=True):
        encoder = load_encoder(str(name))
        for text, shown, path in zip(TEXTS, page.data["texts"], model["paths"], strict=True):
            traced = trace(encoder, text)
            assert shown["tokens"] == traced["tokens"] and path["leaves"] == traced["leaves"]
            for index, (layer, x) in enumerate(
                zip(tree_layers(encoder.model), inputs_of_layers(encoder, text), strict=True)
            ):
                z = torch.einsum("nh,tmh->ntm", x, layer.weight_in) + layer.bias_in  # (tokens, trees, nodes)
                for token, margins in enumerate(path["margins"]):
                    for tree, values in enumerate(margins[index]):
                        node = 0
                        for value in values:
                            assert value == pytest.approx(z[token, tree, node].item(), abs=1e-3)
                            node = 2 * node + 1 + (z[token, tree, node].item() > 0)
                        assert node - 7 == path["leaves"][token][index][tree]


def test_leaves_have_the_counts_of_all_texts(command, small_model, monkeypatch):
    monkeypatch.setattr(explore, "TEXTS", 2)
    page = command(small_model)
    assert len(page.data["texts"]) == 2 and "The first 2 of 3 texts are in this page" in page.text
    encoder = load_encoder(small_model)
    counts = {}
    for text in TEXTS:
        traced = trace(encoder, text)
        for token, [[leaf]] in zip(traced["tokens"], traced["leaves"], strict=True):
            counts.setdefault(leaf, Counter())[token] += 1
    [model] = page.data["models"]
    reached = {leaf for path in model["paths"] for [[leaf]] in path["leaves"]}
    [[leaves]] = model["leaves"]
    assert set(map(int, leaves)) == reached and model["tokens"] == 11
    total = sum(counts.values(), Counter())
    for leaf, content in leaves.items():
        assert content["tokens"] == counts[int(leaf)].total()
        assert {token: number for token, number, _ in content["top"]} == counts[int(leaf)]
        assert all(fraction == pytest.approx(number / total[token]) for token, number, fraction in content["top"])


def test_the_size_of_a_page_is_bounded_and_said(command, small_run, monkeypatch):
    monkeypatch.setattr(explore, "DECISIONS", 2 * 3 * (1 * 3 + 1 * 3) * 8)
    monkeypatch.setattr(explore, "TREES", 1)
    monkeypatch.setattr(explore, "MODELS", 2)
    page = command(small_run, texts=["w1 w2 w3 w4", *["w5 w6"] * 3, "w1 " * 40])
    assert [Path(model["model"]).name for model in page.data["models"]] == ["step-4", "step-12"]
    assert [layer["shown_trees"] for layer in page.data["layers"]] == [1, 1]
    assert len(page.data["texts"]) == 4  # 10 of the 12 * 2 tokens that fit; the next text is longer than the remainder
    assert all(len(token) == 2 and len(token[0]) == 1 for token in page.data["models"][0]["paths"][0]["leaves"])
    for remark in (
        "2 of 3 models are in this page, evenly spaced.",
        "Layer 1: trees 0 to 0 of 2 are in this page.",
        "The first 4 of 5 texts are in this page",
    ):
        assert remark in page.text


def test_a_text_that_is_cut_and_one_without_tokens(command, small_model):
    page = command(small_model, texts=["w1 " * 40, "w2"])
    assert [(len(text["tokens"]), text["cut"]) for text in page.data["texts"]] == [(32, True), (1, False)]


def test_margins_that_are_not_finite_are_null(command, small_model, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(small_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("feedforward.bias_in"))
    weights[name][0, 0] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    page = command(broken)
    [path, *_] = page.data["models"][0]["paths"]
    assert all(margins[0][0][0] is None for margins in path["margins"])


def test_hostile_text_stays_text(command, small_model, tmp_path):
    """Texts, tokens of the vocabulary, and the name of the model."""
    hostile = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(small_model, hostile)
    vocabulary = json.loads((hostile / "tokenizer.json").read_text())
    word = "</script><img/onerror='hacked=1'>"
    vocabulary["model"]["vocab"][word] = vocabulary["model"]["vocab"].pop("w9")
    Tokenizer.from_str(json.dumps(vocabulary)).save(str(hostile / "tokenizer.json"))
    page = command(hostile, texts=[f"w1 {word}", HOSTILE])
    assert page.data["texts"][0] == {"text": f"w1 {word}", "tokens": ["w1", word], "cut": False}
    assert page.data["texts"][1]["text"] == HOSTILE
    assert hostile.name in page.text and word not in page.text


def test_models_of_one_page_have_one_tokenizer(command, small_model, tmp_path, capsys):
    other = Path(shutil.copytree(small_model, tmp_path / "other"))
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content.replace('"w1"', '"x1"'))
    with pytest.raises(SystemExit) as raised:
        command(small_model, other)
    assert raised.value.code == 1
    error = capsys.readouterr().err
    assert f"model {other} splits 'w1 w2 w3 w4' into other tokens than {small_model}; models of one page" in error


def test_errors_come_before_the_work(command, small_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ultrafastbert.commands.inspect.load_encoder", lambda _: pytest.fail("a model was loaded"))
    (tmp_path / "file").write_text("")
    for output, message in (
        ("file/page.html", "error: html {}/file cannot be written"),
        ("", "error: {} is a directory"),
    ):
        with pytest.raises(SystemExit) as raised:
            command(small_model, output=tmp_path / output)
        assert raised.value.code == 1 and message.format(tmp_path) in capsys.readouterr().err


def test_no_page_without_the_option(small_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main("inspect", [small_model, "--text", "w1"])
    assert not list(tmp_path.rglob("*.html")) and "html" not in capsys.readouterr().out


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1200, True)])
def test_in_a_browser(command, checkpoints, tmp_path, width, dark):
    page = command(*checkpoints, texts=[*TEXTS, HOSTILE])
    script = """
      const all = (selector) => [...page.querySelectorAll(selector)], seen = {};
      const search = page.getElementById("search");
      seen.texts = all("#texts button").length;
      input(search, "W7");
      seen.found = all("#texts button").map((button) => button.textContent);
      search.focus(); key(search, "ArrowDown");
      seen.focused = page.activeElement.textContent;
      page.activeElement.click();
      const tokens = all("#tokens [data-token]");
      seen.tokens = tokens.map((token) => token.firstChild.textContent);
      seen.changed = tokens.map((token) => token.classList.contains("changed"));
      tokens[2].dispatchEvent(new window.PointerEvent("pointerenter", { pointerType: "mouse" }));
      seen.hovered = page.querySelector("#paths p").textContent;
      tokens[0].focus(); key(tokens[0], "ArrowRight");
      seen.token = page.activeElement.dataset.token;
      seen.leaves = all("#paths .leaf").map((leaf) => leaf.dataset.leaf);
      const isRight = (turn) => turn.className.includes("right");
      seen.turns = all("#paths .turns").map((turns) => [...turns.children].map(isRight));
      all("#paths .leaf")[0].click();
      seen.leaf = all("#leaf tbody tr").map((row) => [...row.children].map((cell) => cell.textContent));
      seen.contexts = all("#leaf .contexts button").length;
      all("#leaf .contexts button")[0].click();
      seen.pinned = page.activeElement.getAttribute("aria-pressed");
      input(page.getElementById("color"), "1");
      input(page.getElementById("other"), "");
      seen.alone = [all("#paths .leaf").length, all(".changed").length];
      input(search, "");
      return seen;
    """
    seen = visit((tmp_path / "pages" / "page.html").read_bytes(), tmp_path, width, script, dark)
    assert seen["console"] == [] and seen["overflow"] <= 0
    result, models = seen["result"], page.data["models"]
    assert result["texts"] == 4 and result["found"] == [TEXTS[1]] == [result["focused"]]
    assert result["tokens"] == page.data["texts"][1]["tokens"] and result["token"] == "1"
    assert result["hovered"].startswith(f"{result['tokens'][2]} is token 2 of the text. ")
    first, last = (model["paths"][1]["leaves"] for model in models)
    assert result["changed"] == [before != after for before, after in zip(first, last, strict=True)]
    places = [
        (model, layer, tree, leaves[1][layer][tree])
        for layer in range(2)
        for tree in range(2)
        for model, leaves in enumerate((first, last))
    ]
    assert result["leaves"] == [",".join(map(str, place)) for place in places]
    assert result["turns"] == [[bool(leaf >> bit & 1) for bit in (2, 1, 0)] for *_, leaf in places]
    _, _, _, leaf = places[0]
    top = models[0]["leaves"][0][0][str(leaf)]["top"]
    assert result["leaf"] == [[token, str(count), f"{100 * fraction:.0f} %"] for token, count, fraction in top]
    assert result["contexts"] == sum(token[0][0] == leaf for path in models[0]["paths"] for token in path["leaves"])
    assert result["pinned"] == "true" and result["alone"] == [4, 0]
