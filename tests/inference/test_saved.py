"""An optimised model is saved, pickled and copied as it is, and loads for the processor that it is loaded on."""

import copy
import json
import multiprocessing
import pickle
import warnings

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForMaskedLM

from tests.inference.test_optimize import ARCHITECTURES, batch, error, hidden, make, needs_native, optimized
from ultrafastbert import UltraFastBertForMaskedLM, UltraFastBertModel
from ultrafastbert.inference.operators import Int8Linear, PackedLinear
from ultrafastbert.ops import native

SETTINGS = [(dtype, int8) for dtype in ("float32", "bfloat16") for int8 in (False, True)]
pytestmark = needs_native


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits


@pytest.mark.parametrize(("dtype", "int8"), SETTINGS)
def test_saving_and_loading_changes_nothing(dtype, int8, tmp_path):
    fast = optimized(make(UltraFastBertForMaskedLM), dtype=dtype, int8=int8)
    for directory in (tmp_path / "once", tmp_path / "twice"):
        fast.save_pretrained(directory)
        loaded = AutoModelForMaskedLM.from_pretrained(directory)
        assert loaded.optimizations == fast.optimizations and loaded.dtype is fast.dtype
        assert torch.equal(logits(loaded), logits(fast))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        fast = loaded


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_architecture(options, tmp_path):
    fast = optimized(make(**options), dtype="bfloat16", int8=True)
    fast.save_pretrained(tmp_path)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path), **batch()), hidden(fast, **batch()))


def test_the_file_has_the_weights_as_they_are_multiplied(tmp_path):
    optimized(make(), dtype="bfloat16", int8=True).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - not a dictionary
    assert dtypes["layers.0.attention.qkv_proj.weight"] is torch.int8
    assert dtypes["layers.0.attention.qkv_proj.scale"] is torch.float32
    assert dtypes["layers.0.feedforward.weight_in"] is torch.bfloat16
    assert dtypes["layers.0.attention_norm.weight"] is torch.float32  # not rounded, as at first


def test_trees_are_mapped_and_not_read(tmp_path):
    """The loaded tensor is the file: bytes that change in the file change in the model."""
    optimized(make(), dtype="float32", int8=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    model = AutoModel.from_pretrained(tmp_path)
    weight = model.layers[0].feedforward.weight_out
    content = path.read_bytes()
    place = content.index(weight.detach().numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(place)
        file.write(torch.tensor(123.0).numpy().tobytes())
    assert weight.flatten()[0] == 123


@pytest.mark.parametrize(("dtype", "int8"), SETTINGS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles(dtype, int8, duplicate):
    fast = optimized(make(UltraFastBertForMaskedLM), dtype=dtype, int8=int8)
    other = duplicate(fast)
    assert torch.equal(logits(other), logits(fast))
    assert other.model.run_layers.encoder is other.model
    with torch.no_grad():
        other.model.layers[0].feedforward.weight_out.zero_()
    assert not torch.equal(logits(other), logits(fast))  # and not those of the original


def _in_process(connection):
    torch.set_num_threads(1)
    connection.send(logits(connection.recv()).numpy())


def test_multiprocessing():
    fast = optimized(make(UltraFastBertForMaskedLM), dtype="float32", int8=True)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(theirs,))
    process.start()
    theirs.close()  # so that the end of the process ends the wait
    ours.send(fast)
    try:
        torch.testing.assert_close(torch.from_numpy(ours.recv()), logits(fast), rtol=1e-5, atol=1e-5)
    finally:
        process.join()


@pytest.mark.parametrize("int8", [True, False])
def test_the_state_dict_of_another_model(int8):
    fast, source = optimized(make(UltraFastBertForMaskedLM), int8=int8), make(UltraFastBertForMaskedLM)
    with torch.no_grad():
        source.model.layers[0].attention.qkv_proj.weight.mul_(2)
    other = optimized(source, int8=int8)
    assert not torch.equal(logits(fast), logits(other))
    fast.load_state_dict(other.state_dict())
    assert torch.equal(logits(fast), logits(other))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "int8"), SETTINGS)
def test_packed_layers(bias, dtype, int8):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(48, 40, bias=bias), torch.randn(5, 48)
    dtype = getattr(torch, dtype)
    packed = (Int8Linear if int8 else PackedLinear).like(linear, dtype)
    with torch.no_grad():
        assert error(packed(x.to(dtype)), linear(x)) < (0.02 if int8 or dtype is torch.bfloat16 else 1e-6)
    assert packed.weight is None and packed.unpack().shape == (40, 48)
    assert packed.state_dict().keys() == linear.state_dict().keys() | ({"scale"} if int8 else set())


# what does not fit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_int8_instructions_the_weights_are_the_same(dtype, tmp_path, monkeypatch):
    """Saved on a processor with them and loaded on one without; it can be saved again, and changes nothing."""
    features = torch.cpu.get_capabilities()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: features | {"avx512_vnni": True})
        model = make()
        fast = optimized(model, dtype=dtype, int8=True)
        fast.save_pretrained(tmp_path / "with")
    missing = {"avx512_vnni": False, "avx_vnni": False, "amx_int8": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features | missing)
    loaded = AutoModel.from_pretrained(tmp_path / "with")
    assert "no instructions" in loaded.optimizations[1]
    assert (
        error(hidden(loaded, **batch()), hidden(optimized(model, dtype=dtype, int8=False), **batch()).float()) < 0.05
    )
    loaded.save_pretrained(tmp_path / "without")
    for name, tensor in fast.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    again = pickle.loads(pickle.dumps(AutoModel.from_pretrained(tmp_path / "without")))
    assert torch.equal(hidden(again, **batch()), hidden(loaded, **batch()))


def test_where_bfloat16_cannot_be_packed_the_outputs_are_the_same(tmp_path, monkeypatch):
    fast = optimized(make(UltraFastBertForMaskedLM), dtype="bfloat16", int8=False)
    fast.save_pretrained(tmp_path)
    monkeypatch.setattr(PackedLinear, "_can_pack", lambda self: False)
    assert error(logits(AutoModelForMaskedLM.from_pretrained(tmp_path)), logits(fast).float()) < 0.01


def test_without_native_operators_it_is_refused(tmp_path, monkeypatch):
    optimized(make(), int8=True).save_pretrained(tmp_path)
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(RuntimeError, match="needs the native operators .* load the original"):
        AutoModel.from_pretrained(tmp_path)


def test_a_model_saved_without_native_operators_loads(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(native, "available", lambda: False)
        fast = optimized(make(), dtype="bfloat16")
        fast.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.optimizations == fast.optimizations and torch.equal(
        hidden(loaded, **batch()), hidden(fast, **batch())
    )


def test_wrong_choices_are_named(tmp_path):
    optimized(make()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["linear"] = "int4"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantization_config.linear is 'int4'; it should be one of plain, packed"):
        AutoModel.from_pretrained(tmp_path)


def test_other_devices_are_refused(tmp_path):
    optimized(make()).save_pretrained(tmp_path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="device_map is .*should be on cpu"):
        warnings.simplefilter("ignore")
        UltraFastBertModel.from_pretrained(tmp_path, device_map="meta")
