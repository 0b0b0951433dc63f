"""Readers of files get arbitrary content: they read it, or refuse it with an error that is written for people."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultrafastbert import UltraFastBertConfig
from ultrafastbert.finetuning.arguments import OwnDataArguments
from ultrafastbert.finetuning.data.tables import load_table
from ultrafastbert.pages.report import render_report
from ultrafastbert.pages.run import BY_LAYER, POSITION, TRAINING, VALIDATION, read_run
from ultrafastbert.pretraining.checkpointing import step_of_final
from ultrafastbert.pretraining.data.packed import open_packed
from ultrafastbert.runs.checkpoints import read_checkpoint
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.runs.results import ResultStore
from ultrafastbert.utils.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("format", "version", "rows", "dtype", "files", "progress", "step", "settings", "request", "vocab_size")
OBJECTS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=6)
CONTENT = st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="replace"))
CONTENT |= (OBJECTS | JSON).map(lambda value: json.dumps(value).encode())
CONTENT |= st.lists(OBJECTS, max_size=3).map(lambda lines: "".join(json.dumps(x) + "\n" for x in lines).encode())


def packed(directory, content):
    (directory / "manifest.json").write_bytes(content)
    open_packed(directory)


def checkpoint(directory, content):
    (directory / "checkpoint.json").write_bytes(content)
    read_checkpoint(directory)


def final(directory, content):
    (directory / "final").mkdir(exist_ok=True)
    (directory / "final" / "pretraining.json").write_bytes(content)
    assert step_of_final(directory) is None  # there is no model


def metrics(directory, content):
    (directory / "metrics.jsonl").write_bytes(content)
    assert all(type(line["step"]) is int for line in read_metrics(directory / "metrics.jsonl"))


def run(directory, content):
    """All files of a run that a report reads."""
    (directory / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "config.yaml", "starts.jsonl", "checkpoints/step-1/checkpoint.json"):
        (directory / name).write_bytes(content)
    render_report([read_run(directory, "a"), read_run(directory, "b")], [], [])


def lines_of_a_run(directory, content):
    """Lines of metrics and starts with an arbitrary value in every field."""
    try:
        value = json.loads(content)
    except ValueError:
        return
    fields = ("budget_fraction", *POSITION[1:], *TRAINING, *VALIDATION, *BY_LAYER, "skipped", "time", "backends")
    line = json.dumps({"step": 1} | dict.fromkeys(fields, value)) + "\n"
    (directory / "metrics.jsonl").write_text(line)
    (directory / "starts.jsonl").write_text(line)
    render_report([read_run(directory, "a")], [], [])


def result(directory, content):
    (directory / "a.json").write_bytes(content)
    ResultStore(directory).read("a.json", {"lr": 1})


def table(suffix):
    def read(directory, content):
        (directory / f"a{suffix}").write_bytes(content)
        load_table("a", directory / f"a{suffix}", OwnDataArguments(text_columns=["rows"], label_column="step"))

    return read


READERS = {"packed": packed, "checkpoint": checkpoint, "final": final, "metrics": metrics, "result": result}
READERS |= {"run": run, "lines of a run": lines_of_a_run}
READERS |= {suffix: table(suffix) for suffix in (".csv", ".tsv", ".jsonl", ".csv.gz")}


@pytest.mark.parametrize("name", READERS)
def test_arbitrary_content(name, tmp_path, budget):
    @settings(max_examples=int(150 * budget), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(content=CONTENT)
    def search(content):
        try:
            READERS[name](tmp_path, content)
        except UserError as error:
            assert str(error)

    search()


def test_manifests_with_one_wrong_value(packed_directory, tmp_path, budget):
    """Of a version without a checksum: the value is refused, or nothing that is read depends on it."""
    whole = json.loads((packed_directory / "manifest.json").read_text())
    for path in packed_directory.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "manifest.json").unlink()
    expected = open_packed(packed_directory).train.tobytes()

    @settings(max_examples=int(300 * budget), deadline=None, derandomize=True)
    @given(field=st.sampled_from(sorted(whole)), value=JSON)
    def search(field, value):
        (tmp_path / "manifest.json").write_text(json.dumps(whole | {field: value}))
        try:
            opened = open_packed(tmp_path)
        except UserError as error:
            assert str(error)
        else:
            assert opened.fingerprint == whole["fingerprint"] and opened.train.tobytes() == expected

    search()


def test_configurations_with_one_wrong_value(tmp_path, budget):
    whole = UltraFastBertConfig(hidden_size=16, num_attention_heads=2).to_dict()
    names = sorted(set(whole) & set(UltraFastBertConfig.__annotations__))

    @settings(max_examples=int(300 * budget), deadline=None, derandomize=True)
    @given(field=st.sampled_from(names), value=JSON)
    def search(field, value):
        Path(tmp_path / "config.json").write_text(json.dumps(whole | {field: value}))
        try:
            UltraFastBertConfig.from_pretrained(tmp_path)
        except StrictDataclassError as error:
            assert field in str(error) or "num_attention_heads" in str(error)

    search()
