"""The choice of a backend by measurement: wrong and failing ones are dropped, layers get the fastest, runs keep it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ultrafastbert import FFF, ops
from ultrafastbert.ops import gather, reference
from ultrafastbert.runs import backend


@pytest.fixture(autouse=True)
def no_memory():
    """Measurements are kept for the process."""
    backend._measure.cache_clear()
    yield
    backend._measure.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """Replaces the clock: by the name of a backend, the seconds that it takes."""
    times = {"reference": 4.0, "gather": 2.0, "dense": 3.0}
    monkeypatch.setattr(backend, "take_turns", lambda calls, seconds, device: {name: [times[name]] for name in calls})
    return times


def model(*layers):
    return nn.ModuleList(layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [24, 768])
@pytest.mark.parametrize("trees, depth", [(1, 7), (3, 2)])
def test_all_backends_pass_the_check(dtype, hidden, trees, depth):
    """Also in small dtypes, in which decisions near zero would otherwise differ."""
    arguments = backend._make_arguments(hidden, depth, trees, torch.device("cpu"), dtype, 200)
    names = [name for name in ops.BACKENDS if name != "triton"]  # whose interpreter is slow; tests/ops has its own
    assert {name: backend._check(name, arguments) for name in names} == dict.fromkeys(names, "")
    paths = [ops.route(*arguments[:3], backend=name) for name in names]
    assert all(torch.equal(path, paths[0]) for path in paths)
    assert len(paths[0][:, 0, -1].unique()) > min(2**depth, 200) / 2  # the tokens use most of the tree


@pytest.mark.parametrize(
    "fff, named",
    [
        (lambda x, w, b, v: 1.2 * gather.fff(x, w, b, v), "wrong: its output differs by 20.0%"),
        (lambda x, w, b, v: gather.fff(x, w, b, v.roll(1, 1)), "wrong: its output differs"),
        (lambda x, w, b, v: gather.fff(x, w, b, v) * float("nan"), "wrong: its output differs by nan%"),
        (lambda x, w, b, v: gather.fff(x, w.detach(), b, v) + 0 * w.sum(), "wrong: its gradient of weight_in differs"),
        (lambda x, w, b, v: gather.fff(x.detach(), w, b, v) + 0 * x, "wrong: its gradient of x differs"),
    ],
)
def test_wrong_backends_are_dropped(monkeypatch, timed, fff, named):
    monkeypatch.setitem(ops.BACKENDS, "blocked", SimpleNamespace(fff=fff))
    timed["blocked"] = 0.1
    measured = backend.measure_backends(model(FFF(16, 5)), 64, torch.float32, ["gather", "blocked"])
    assert measured["1x5"]["gather"] == 2.0 and named in measured["1x5"]["blocked"]
    assert backend.fastest(measured) == {"1x5": "gather"}


def test_failing_backends_are_dropped(monkeypatch, timed):
    def fff(x, weight_in, bias_in, weight_out):
        if len(x) > backend.CHECKED_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore than there is")
        return reference.fff(x, weight_in, bias_in, weight_out)

    monkeypatch.setitem(ops.BACKENDS, "blocked", SimpleNamespace(fff=fff))
    layers = model(FFF(16, 3))
    measured = backend.measure_backends(layers, 600, torch.float32, ["blocked", "gather"])
    assert measured["1x3"]["blocked"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert backend.describe(measured["1x3"]) == f"blocked: {measured['1x3']['blocked']}, gather 2e+03 ms"
    with pytest.raises(RuntimeError, match="no backend computes trees of 1x3 here.*out of memory"):
        backend.fastest(backend.measure_backends(layers, 600, torch.float32, ["blocked"]))


def test_layers_get_the_fastest_backend_of_their_size(timed):
    layers = model(FFF(16, 3), FFF(16, 5, trees=2), FFF(16, 3, backend="reference"), FFF(16, 3))
    measured = backend.measure_backends(layers, 64, torch.float32, ["reference", "gather", "dense"])
    assert set(measured) == {"1x3", "2x5"}
    backend.use_backends(layers, {"1x3": "gather", "2x5": "dense"})
    assert [layer.backend for layer in layers] == ["gather", "dense", "reference", "gather"]


def test_a_cpu_measures_nothing(timed):
    layers = model(FFF(16, 3))
    backend.use_fastest_backends(layers, 64, torch.float32)
    assert layers[0].backend is None


def test_the_environment_decides(monkeypatch):
    assert backend.is_measured(torch.device("cuda")) and not backend.is_measured(torch.device("cpu"))
    monkeypatch.setenv("UFB_FFF_BACKEND", "dense")
    assert not backend.is_measured(torch.device("cuda"))


def test_real_times():
    measured = backend.measure_backends(model(FFF(32, 6)), 256, torch.float32, ["reference", "dense"])
    assert all(isinstance(value, float) and value > 0 for value in measured["1x6"].values())
