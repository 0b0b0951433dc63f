"""A compiled model computes the same in a process without this package, with the native operator and without it."""

import pytest
import torch

from tests.export.helpers import batch, first_outputs, make, run_without_the_package, save
from tests.inference.test_optimize import needs_native
from ultrafastbert.cli import main
from ultrafastbert.export import aoti
from ultrafastbert.ops import native
from ultrafastbert.utils.errors import UserError

RUN = """
from pathlib import Path
import torch
if Path("out/native.so").exists():
    torch.ops.load_library("out/native.so")
model = torch._inductor.aoti_load_package("out/model.pt2")
torch.save([model(*inputs.values()) for inputs in torch.load("inputs.pt")], "outputs.pt")
"""


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize("leaves", [None, 4])
def test_it_runs_without_the_package(with_native, leaves, tmp_path, monkeypatch, capsys):
    if not with_native:
        monkeypatch.setattr(native, "available", lambda: False)
    model = make(
        "UltraFastBertForMaskedLM", num_hidden_layers=1, fff_depth=7 if leaves is None else 3, fff_leaf_size=leaves
    )
    main(argv=["export", "aoti", "--model", str(save(model, tmp_path / "in")), "--output_dir", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "compared with PyTorch on 12 sequences" in out
    assert ("it has no native operator" in out) != with_native
    assert (tmp_path / "out" / "native.so").exists() == with_native
    inputs = [batch(), {name: tensor[:1, :7] for name, tensor in batch().items()}]
    torch.save(inputs, tmp_path / "inputs.pt")
    done = run_without_the_package(RUN, tmp_path)
    assert done.returncode == 0, done.stderr
    for each, outputs in zip(inputs, torch.load(tmp_path / "outputs.pt"), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(list(outputs), first_outputs(model(**each)), atol=1e-4, rtol=1e-4)


def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no working C++ compiler\nmore")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(UserError, match="^the model cannot be compiled: no working C\\+\\+ compiler$"):
        aoti.compile_model(make(fff_depth=1), tmp_path / "model.pt2")
