"""The examples of docs/layer.md run as they stand, one after the other."""

import contextlib
import io
import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "layer.md"


def test_the_examples_run_and_print_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert all(layer.is_split and layer.leaf_weight_in.std(dim=0).any() for layer in names["replaced"].values())
    decoder, other = (names[name].state_dict() for name in ("decoder", "other"))
    assert all(torch.equal(decoder[name], other[name]) for name in decoder)
