"""The arithmetic that `optimize_for_inference` chooses: the fastest that is exact enough, by times that are kept."""

import json

import pytest
import torch

from tests.inference.test_optimize import batch, error, hidden, make, needs_native, optimized
from ultrafastbert import UltraFastBertForMaskedLM
from ultrafastbert.inference import arithmetic, optimize
from ultrafastbert.inference.arithmetic import EXACT, Arithmetic
from ultrafastbert.inference.operators import Int8Linear
from ultrafastbert.ops import native

BF16, INT8 = Arithmetic(torch.bfloat16, int8=False), Arithmetic(torch.float32, int8=True)
BOTH = Arithmetic(torch.bfloat16, int8=True)
ERRORS = {EXACT: 0.0, BF16: 0.01, INT8: 0.04, BOTH: 0.08}
TIMES = {EXACT: [4.0, 8.0], BF16: [2.0, 5.0], INT8: [2.0, 4.0], BOTH: [1.0, 3.0]}


def select(times, tolerance, candidates=tuple(ERRORS)):
    times = {str(name): seconds for name, seconds in times.items()}
    return arithmetic.select(candidates, times, ERRORS.get, tolerance)


@pytest.mark.parametrize("tolerance, chosen", [(0.1, BOTH), (0.05, INT8), (0.02, BF16), (0.001, EXACT), (0, EXACT)])
def test_the_fastest_that_is_exact_enough(tolerance, chosen):
    assert select(TIMES, tolerance)[0] == chosen


def test_instructions_that_are_slow_are_not_used():
    assert select(TIMES | {BF16: [5.0, 8.1]}, 0.02)[0] == EXACT


def test_a_time_is_a_mean_over_the_shapes():
    assert select({BF16: [1.0, 9.0], INT8: [2.0, 4.0]}, 0.1, [BF16, INT8])[0] == INT8  # 3.0 and 2.8


def test_what_was_dropped_early_comes_last():
    assert select({BF16: [9.0], INT8: [4.0, 40.0]}, 0.1, [BF16, INT8])[0] == INT8
    assert select({BF16: [9.0], INT8: [4.0, 40.0]}, 0.02, [BF16, INT8])[0] == BF16  # the other is not exact enough


def test_if_none_is_exact_enough_the_most_exact():
    chosen, reason = select(TIMES, 0.02, [INT8, BOTH])
    assert chosen == INT8
    assert reason.startswith("float32 with int8 is the most exact, because none is, within an error of 2.0%")


def test_the_reason_has_what_was_measured():
    assert select(TIMES, 0.05)[1] == (
        "float32 with int8 is the fastest within an error of 5.0% (bfloat16 with int8 0.61x the time and 8.0%, "
        "float32 with int8 1.00x the time and 4.0%, bfloat16 1.12x the time, float32 2.00x the time)"
    )


def test_the_hopeless_are_not_timed_with_longer_inputs(monkeypatch):
    seconds = {"fast": [1.0, 1.0, 1.0], "slow": [1.9, 1.9, 1.9], "hopeless": [2.1, 0.1, 0.1], "later": [1.5, 9.0, 0.1]}
    calls = {name: lambda tokens, own=own: own[tokens] for name, own in seconds.items()}
    monkeypatch.setattr(
        arithmetic, "take_turns", lambda calls, seconds: {name: [call()] * 3 for name, call in calls.items()}
    )
    assert arithmetic.measure(calls, [0, 1, 2]) == {
        "fast": [1.0, 1.0, 1.0],
        "slow": [1.9, 1.9, 1.9],
        "hopeless": [2.1],
        "later": [1.5, 9.0],
    }


# in optimize_for_inference


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Replaces the clock: `measured(times)` sets what is measured and returns a list that counts measurements."""
    native.available()  # loaded from where it is, before times get a directory of their own
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(optimize, "multiplies_int8", lambda: True)

    def use(times):
        measurements = []

        def measure(calls, inputs):
            measurements.append([tuple(tokens.shape) for tokens in inputs])
            assert set(calls) == set(map(str, times))
            return {str(name): seconds for name, seconds in times.items()}

        monkeypatch.setattr(arithmetic, "measure", measure)
        return measurements

    return use


def in_int8(model):
    return any(isinstance(module, Int8Linear) for module in model.modules())


@needs_native
@pytest.mark.skipif(not optimize._has_onednn(), reason="int8 needs oneDNN")
@pytest.mark.parametrize("tolerance, dtype, int8", [(1.0, torch.bfloat16, True), (0.0, torch.float32, False)])
@pytest.mark.parametrize("head", [None, UltraFastBertForMaskedLM])
def test_automatic_choice(measured, tolerance, dtype, int8, head):
    measured(TIMES)
    fast = optimized(make(*[head] if head else []), tolerance=tolerance)
    assert fast.dtype is dtype and in_int8(fast) == int8
    assert f"within an error of {tolerance:.1%}" in fast.optimizations[0]
    assert fast.optimizations[1].startswith("weights in")


@needs_native
def test_the_error_is_that_of_the_model(measured):
    """The errors of the chosen arithmetic, read from the reason, are near those on other inputs."""
    measured({EXACT: [2.0], BF16: [1.0]})
    model, inputs = make(), batch()
    fast = optimized(model, int8=False, tolerance=1.0)
    said = float(fast.optimizations[0].partition("1.00x the time and ")[2].partition("%")[0]) / 100
    assert 0.5 < said / error(hidden(fast, **inputs)[:1], hidden(model, **inputs)[:1]) < 2


def test_fixed_settings_are_not_measured(measured):
    measurements = measured(TIMES)
    optimized(make(), dtype="float32", int8=False)
    assert measurements == []


@needs_native
def test_times_are_measured_once_for_models_of_a_size(measured, tmp_path):
    first = measured({EXACT: [2.0], BF16: [1.0]})
    choose = {"int8": False, "tolerance": 1.0, "shapes": [(2, 100), (1, 3)]}
    assert optimized(make(), **choose).dtype is torch.bfloat16
    assert first == [[(1, 3), (2, 40)]]  # the encoder has 40 positions
    again = measured({EXACT: [1.0], BF16: [2.0]})
    assert optimized(make(initializer_range=0.1), **choose).dtype is torch.bfloat16
    assert again == []
    assert optimized(make(hidden_size=24), **choose).dtype is torch.float32
    assert optimized(make(), **choose | {"shapes": [(1, 3)]}).dtype is torch.float32
    assert len(again) == 2 and len(list(tmp_path.glob("*/arithmetic-*.json"))) == 3


@needs_native
def test_a_measurement_is_announced(measured, capsys):
    measured({EXACT: [2.0], BF16: [1.0]})
    said = []
    for sizes, verbose in (({}, False), ({"hidden_size": 24}, True), ({"hidden_size": 24}, True)):
        optimize.optimize_for_inference(make(**sizes), int8=False, verbose=verbose)
        said.append(capsys.readouterr().err.splitlines())
    assert said[0] == []
    assert said[1][0] == "optimize_for_inference: timing float32, bfloat16, once for this size of model ..."
    assert len(said[1]) == 2 and len(said[2]) == 1


@needs_native
@pytest.mark.parametrize("damage", ["", "{", "1", "{}", "swapped", "\0" * 100])
def test_damaged_times_are_measured_again(measured, tmp_path, damage):
    measured({EXACT: [2.0], BF16: [1.0]})
    optimized(make(), int8=False, tolerance=1.0)
    (file,) = tmp_path.glob("*/arithmetic-*.json")
    if damage == "swapped":
        content = json.loads(file.read_text())
        content["times"] = {"float32": [1.0], "bfloat16": [2.0]}
        damage = json.dumps(content)
    file.write_text(damage)
    again = measured({EXACT: [2.0], BF16: [1.0]})
    assert optimized(make(), int8=False, tolerance=1.0).dtype is torch.bfloat16
    assert len(again) == 1


@needs_native
def test_without_a_place_for_times(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "write_atomically", lambda *arguments: (_ for _ in ()).throw(OSError("full")))
    measured({EXACT: [2.0], BF16: [1.0]})
    assert optimized(make(), int8=False, tolerance=1.0).dtype is torch.bfloat16


def test_without_instructions_for_int8_it_is_not_a_candidate(monkeypatch):
    monkeypatch.setattr(optimize, "multiplies_int8", lambda: False)
    assert optimize._candidates("auto", "auto") == [EXACT, BF16]
    assert optimize._candidates("float32", "auto") == [EXACT]


@needs_native
def test_a_model_that_gives_no_numbers_stays_exact(measured):
    measured({EXACT: [2.0], BF16: [1.0]})
    model = make()
    with torch.no_grad():
        model.final_norm.weight.fill_(float("nan"))
    assert optimized(model, int8=False).dtype is torch.float32


@needs_native
def test_real_times_give_a_usable_model():
    model, inputs = make(), batch()
    fast = optimized(model)
    real = inputs["attention_mask"].bool()
    assert error(hidden(fast, **inputs)[real], hidden(model, **inputs)[real]) < 0.1
