"""The metrics agree with their formulas, written here in plain Python; degenerate and wrong input is reported."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import ultrafastbert
from ultrafastbert.finetuning.metrics import METRICS, DegenerateWarning, compute_metric
from ultrafastbert.utils.errors import UserError

DIRECTORY = Path(ultrafastbert.__file__).parent / "finetuning" / "metrics"

examples = settings(deadline=None, derandomize=True, max_examples=50)  # the first example imports scikit-learn


@st.composite
def pairs_of_classes(draw, num_labels):
    length = draw(st.integers(1, 30))
    classes = st.lists(st.integers(0, num_labels - 1), min_size=length, max_size=length)
    return draw(classes), draw(classes)


@st.composite
def pairs_of_numbers(draw):
    length = draw(st.integers(2, 30))
    numbers = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=length, max_size=length)
    return draw(numbers), draw(numbers)


def correlation(x, y):
    """Pearson's, by the definition; 0 where it is not defined."""
    x, y = [value - sum(x) / len(x) for value in x], [value - sum(y) / len(y) for value in y]
    norm = math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / norm if norm > 1e-9 else 0.0


def f1_of_class(label, predictions, references):
    """F1 by precision and recall; None if the class does not occur."""
    right = sum(p == r == label for p, r in zip(predictions, references, strict=True))
    predicted, true = predictions.count(label), references.count(label)
    if not predicted and not true:
        return None
    if not right:
        return 0.0
    precision, recall = right / predicted, right / true
    return 2 * precision * recall / (precision + recall)


@examples
@given(pairs_of_classes(2))
def test_matthews_is_the_correlation_of_two_classes(pair):
    values, warnings = compute_metric("matthews", *pair, num_labels=2)
    assert values == {"matthews_correlation": pytest.approx(correlation(*pair), abs=1e-12)}
    assert bool(warnings) == (min(len(set(pair[0])), len(set(pair[1]))) == 1)


@examples
@given(pairs_of_classes(4))
def test_matthews_of_more_classes_is_the_correlation_summed_over_indicators(pair):
    """Gorodkin (2004): the covariances of the classes' indicators, summed, replace the covariance."""
    x, y = (np.eye(4)[classes] - np.eye(4)[classes].mean(axis=0) for classes in pair)
    norm = math.sqrt((x * x).sum() * (y * y).sum())
    expected = (x * y).sum() / norm if norm > 1e-9 else 0.0
    assert compute_metric("matthews", *pair, num_labels=4)[0]["matthews_correlation"] == pytest.approx(expected)


@examples
@given(pairs_of_classes(2))
def test_f1_of_two_classes_is_that_of_class_1(pair):
    values, warnings = compute_metric("accuracy_f1", *pair)
    right = sum(p == r for p, r in zip(*pair, strict=True))
    assert values == {
        "accuracy": pytest.approx(right / len(pair[0])),
        "f1": pytest.approx(f1_of_class(1, *pair) or 0.0),
    }
    assert bool(warnings) == (min(len(set(pair[0])), len(set(pair[1]))) == 1)


@examples
@given(pairs_of_classes(4))
def test_f1_of_more_classes_is_the_mean_over_classes_that_occur(pair):
    values, warnings = compute_metric("accuracy_f1", *pair, num_labels=4)
    by_class = [f1_of_class(label, *pair) for label in range(4)]
    occurring = [f1 for f1 in by_class if f1 is not None]
    assert values["f1"] == pytest.approx(sum(occurring) / len(occurring))
    assert bool(warnings) == (set(pair[0]) != set(range(4)) or set(pair[1]) != set(range(4)))


@examples
@given(pairs_of_numbers())
def test_correlations_follow_their_definitions(pair):
    values, warnings = compute_metric("pearson_spearman", *pair)
    assert values["pearson"] == pytest.approx(correlation(*pair), abs=1e-9)
    assert values["spearman"] == pytest.approx(correlation(*map(rankdata, pair)), abs=1e-9)
    assert bool(warnings) == (min(len(set(pair[0])), len(set(pair[1]))) == 1)


finite = st.floats(allow_nan=False, allow_infinity=False)


@examples
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=8))
def test_correlations_of_any_finite_numbers_are_correlations(pair):
    """Including the largest and smallest floats, for which a mean overflows."""
    values, _ = compute_metric("pearson_spearman", *zip(*pair, strict=True))
    assert all(-1 <= value <= 1 for value in values.values())


def test_the_mean_of_f1_depends_on_the_number_of_classes():
    pair = [0, 1, 1, 0], [0, 1, 0, 0]
    assert compute_metric("accuracy_f1", *pair)[0]["f1"] == pytest.approx(2 / 3)
    assert compute_metric("accuracy_f1", *pair, num_labels=3)[0]["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "values", "said"),
    [
        ("matthews", [1, 1, 1], [0, 1, 1], [0.0], ["predictions are class 1 in all examples (3)"]),
        ("matthews", [0, 1, 1], [0, 0, 0], [0.0], ["references are class 0 in all examples (3)"]),
        ("matthews", [1], [1], [0.0], ["class 1 in all examples (1)"]),
        ("accuracy_f1", [0, 0, 0], [0, 1, 0], [2 / 3, 0.0], ["class 0", "class 1 (0 of 3 predictions, 1 of 3"]),
        ("accuracy_f1", [1, 1, 1, 1], [0, 1, 1, 1], [0.75, 6 / 7], ["predictions are class 1 in all examples (4)"]),
        ("accuracy_f1", [0], [0], [1.0, 0.0], ["predictions", "references", "class 1 (0 of 1 predictions, 0 of 1"]),
        (
            "pearson_spearman",
            [2.5] * 3,
            [1, 2, 3],
            [0.0, 0.0],
            ["predictions are constant (3 examples, from 2.5 to 2.5)"],
        ),
        ("pearson_spearman", [1, 2, 3], [0, 0, 0], [0.0, 0.0], ["references are constant"]),
        ("pearson_spearman", [1], [1], [0.0, 0.0], ["predictions are constant (1 examples"]),
    ],
)
def test_degenerate_input_has_values_and_warnings(metric, predictions, references, values, said, recwarn):
    computed, warnings = compute_metric(metric, predictions, references)
    assert list(computed.values()) == pytest.approx(values)
    assert len(warnings) == len(said) and all(part in whole for part, whole in zip(said, warnings, strict=True))
    assert not recwarn.list  # nothing reaches the terminal


def test_warnings_distinguish_absent_classes():
    _, warnings = compute_metric("accuracy_f1", [0, 0, 1], [0, 2, 1], num_labels=4)
    assert warnings == [
        "F1 counts as 0 for class 2 (0 of 3 predictions, 1 of 3 references)",
        "the mean of F1 ignores class 3 (0 of 3 predictions, 0 of 3 references)",
    ]
    _, warnings = compute_metric("accuracy_f1", [0, 1], [0, 1], num_labels=150)
    assert len(warnings) == 1 and warnings[0].endswith("class 6 (0 of 2 predictions, 0 of 2 references), and 143 more")


def test_rounding_errors_of_a_constant_do_not_correlate():
    generator = np.random.default_rng(0)
    references = generator.uniform(0, 5, 200)
    constant = np.full(200, 2.7, np.float32)
    noise = np.nextafter(constant, np.where(references > 2.5, np.float32(9), np.float32(0)))
    values, warnings = compute_metric("pearson_spearman", noise, references)
    assert values == {"pearson": 0.0, "spearman": 0.0} and "predictions are constant" in warnings[0]

    # References may differ by less than that: seconds since 1970 do, and correlate.
    seconds = 1.7e9 + np.arange(200)
    assert compute_metric("pearson_spearman", np.arange(200), seconds) == (
        {"pearson": pytest.approx(1), "spearman": pytest.approx(1)},
        [],
    )
    values, warnings = compute_metric("pearson_spearman", constant + np.float32(1e-4) * references, references)
    assert values["pearson"] > 0.99 and not warnings


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "message"),
    [
        ("matthews", [], [], "no examples"),
        ("matthews", [], [1, 0], "no examples"),
        ("accuracy_f1", [1, 0], [1], r"predictions \(2\) and references \(1\)"),
        ("accuracy_f1", [1, 2], [1, 0], r"predictions\[1\] is 2; it should be a class, an integer from 0 to 1"),
        ("accuracy_f1", [1, 0], [1, -100], r"references\[1\] is -100"),
        ("matthews", [0.2, 0.7], [1, 0], r"predictions\[0\] is 0.2; .* \(2 of 2 examples are not\)"),
        ("matthews", [1, math.nan], [1, 0], r"predictions\[1\] is nan"),
        ("accuracy_f1", [[0.1, 0.9], [0.3, 0.7]], [1, 0], "format"),
        ("accuracy_f1", ["entailment", "neutral"], [1, 0], "entailment"),
        (
            "pearson_spearman",
            [1.0, math.nan, 2.0],
            [1, 2, 3],
            r"predictions\[1\] is nan; .* \(1 of 3 examples are not\)",
        ),
        ("pearson_spearman", [1.0, 2.0], [1, math.inf], r"references\[1\] is inf"),
        ("pearson_spearman", [1.0, None], [1, 2], r"predictions\[1\] is nan"),
        ("bleu", [1], [1], "metric is 'bleu'; it should be one of matthews, accuracy_f1, pearson_spearman"),
    ],
)
def test_wrong_input_is_an_error(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        compute_metric(metric, predictions, references)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_give_floats(convert):
    for metric in METRICS:
        values, _ = compute_metric(metric, convert([0, 1, 1, 0]), convert([0, 1, 0, 0]))
        assert values and all(type(value) is float for value in values.values())
    # float64, not float32: these differ in the ninth digit
    values, warnings = compute_metric("pearson_spearman", [0, 1, 2], [1, 1 + 1e-9, 1 + 2e-9])
    assert values == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)} and not warnings


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.delitem(sys.modules, "ultrafastbert.finetuning.metrics.matthews", raising=False)
    with pytest.raises(UserError, match="pip install evaluate scikit-learn scipy .*evaluate"):
        compute_metric("matthews", [0, 1], [0, 1])


def test_the_module_itself_warns(tmp_path):
    from ultrafastbert.finetuning.metrics.matthews import Matthews

    with pytest.warns(DegenerateWarning, match="predictions are class 1"):
        Matthews(cache_dir=str(tmp_path)).compute(predictions=[1, 1], references=[0, 1])


PROCESS = """
import doctest, glob, multiprocessing, socket, sys

def refuse(*_):
    raise AssertionError("the network was used")

socket.socket.connect = socket.getaddrinfo = refuse

import evaluate
from ultrafastbert.finetuning.metrics import compute_metric

def compute_often(process):
    for length in range(1, 20):
        classes = [0, 1] * (process + length)
        assert compute_metric("matthews", classes, classes) == ({"matthews_correlation": 1.0}, [])
        assert compute_metric("matthews", classes, [1] * len(classes))[0] == {"matthews_correlation": 0.0}

with multiprocessing.get_context("fork").Pool(4) as pool:
    pool.map(compute_often, range(4))
print(glob.glob(f"{sys.argv[1]}/*"))

for path in sys.argv[2:]:
    metric = evaluate.load(path)
    assert metric.description and metric.citation and metric.reference_urls
    text = metric.inputs_description.replace("ultrafastbert/finetuning/metrics/" + path.rpartition("/")[2], path)
    test = doctest.DocTestParser().get_doctest(text, {"evaluate": evaluate}, path, path, 0)
    print(len(test.examples), doctest.DocTestRunner().run(test).failed)
"""


@pytest.mark.slow
def test_several_processes_compute_without_network_and_evaluate_loads_the_files(tmp_path):
    """Even if warnings are errors, `compute_metric` raises none; it leaves no files."""
    paths = [f"{DIRECTORY}/{metric}.py" for metric in METRICS]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{tmp_path}/hf", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROCESS, str(tmp_path), *paths]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "2 0", "3 0", "3 0"]
