"""Prepared data is found again, built once, and built completely or not at all."""

import errno
import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from ultrafastbert.cli import parse_arguments
from ultrafastbert.pretraining.arguments import PretrainArguments
from ultrafastbert.pretraining.data import build
from ultrafastbert.pretraining.data import prepare as prepare_module
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import DataError, open_packed
from ultrafastbert.pretraining.data.prepare import prepare
from ultrafastbert.pretraining.data.sources import TextFile


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("[!.]*") if path.is_file()}


def left_behind(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_the_same_request_gives_the_same_bytes(text_file, arguments_for, tmp_path):
    first, second = (
        prepare(arguments_for(text_file, cache_dir=str(tmp_path / name)), progress=False).directory for name in "ab"
    )
    assert contents(first) == contents(second)
    assert sorted(contents(first)) == [
        "manifest.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "train.bin",
        "validation.bin",
    ]


def test_the_fingerprint_depends_on_the_data_and_not_on_its_path(text_file, arguments_for, tmp_path):
    copy = shutil.copy(text_file, tmp_path / "copy.txt")
    first, moved, other = (
        prepare(arguments_for(source, **options), progress=False)
        for source, options in ((text_file, {}), (copy, {}), (text_file, {"sequence_length": 8}))
    )
    assert first.directory != moved.directory and first.fingerprint == moved.fingerprint
    assert other.fingerprint != first.fingerprint


def test_prepared_data_is_found_without_reading_text(text_file, arguments_for, monkeypatch):
    first = prepare(arguments_for(text_file), progress=False)
    monkeypatch.setattr(TextFile, "texts", lambda *_: pytest.fail("the text was read again"))
    assert prepare(arguments_for(text_file), progress=False).directory == first.directory
    assert prepare(arguments_for(text_file, streaming=False), progress=False).directory == first.directory


def test_other_text_and_other_options_give_other_data(text_file, arguments_for, texts):
    directories = {prepare(arguments_for(text_file), progress=False).directory}
    for options in (
        {"validation_fraction": 0.2},
        {"order": "prevalence"},
        {"deduplicate": False},
        {"vocab_size": 300},
    ):
        directories.add(prepare(arguments_for(text_file, **options), progress=False).directory)
    text_file.write_text("\n".join(texts[::-1]))  # the same number of bytes
    directories.add(prepare(arguments_for(text_file), progress=False).directory)
    assert len(directories) == 6


def test_another_tokenizer_of_the_same_name_gives_other_data(text_file, arguments_for, tmp_path):
    mine = tmp_path / "mine"
    directories = set()
    for vocab_size in (300, 350):
        trained = prepare(arguments_for(text_file, vocab_size=vocab_size), progress=False)
        shutil.copytree(trained.tokenizer_directory, mine, dirs_exist_ok=True)
        packed = prepare(arguments_for(text_file, tokenizer=str(mine)), progress=False)
        assert packed.vocab_size == vocab_size
        assert packed.fingerprint == trained.fingerprint
        directories.add(packed.directory)
    assert len(directories) == 2
    (mine / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="mine has no tokenizer.json"):
        prepare(arguments_for(text_file, tokenizer=str(mine)), progress=False)


def test_prepared_data_is_a_source(text_file, arguments_for, tmp_path):
    packed = prepare(arguments_for(text_file), progress=False)
    elsewhere = shutil.copytree(packed.directory, tmp_path / "elsewhere")
    opened = prepare(DataArguments(source=str(elsewhere)), progress=False)
    assert opened.directory == elsewhere and opened.fingerprint == packed.fingerprint
    assert prepare(DataArguments(source=[str(elsewhere)], vocab_size=400), progress=False).directory == elsewhere
    with pytest.raises(DataError, match="sequence_length is 64, but the data in .* was prepared with 16"):
        prepare(DataArguments(source=str(elsewhere), sequence_length=64), progress=False)
    with pytest.raises(DataError, match="validation_source is .*, but the data in .* is prepared"):
        prepare(DataArguments(source=str(elsewhere), validation_source=str(text_file)), progress=False)
    given_default = DataArguments(source=str(elsewhere), sequence_length=128)  # like an option that is not given
    assert prepare(given_default, progress=False).manifest["sequence_length"] == 16
    with pytest.raises(DataError, match="elsewhere is prepared data, which cannot be combined with other sources"):
        prepare(arguments_for([str(text_file), str(elsewhere)]), progress=False)


@pytest.mark.parametrize("from_file", [False, True])
def test_prepared_data_brings_its_own_settings(text_file, arguments_for, tmp_path, capsys, from_file):
    """Against what a file or default says, but not against what the command line says."""
    directory = prepare(arguments_for(text_file), progress=False).directory
    words = [f"--source={directory}"]
    if from_file:
        config = tmp_path / "config.yaml"
        config.write_text("vocab_size: 8192\nmax_tokens_per_character: 0.4\nvalidation_source: other.txt\n")
        words = ["--config", str(config), *words]
    assert prepare(parse_arguments(DataArguments, words)).vocab_size <= 400
    said = capsys.readouterr().err
    assert "with its own settings: " in said and "sequence_length 16" in said
    assert ("vocab_size 400, not 8192" in said and "not 'other.txt'" in said) == from_file
    for option, prepared in (("sequence_length=128", 16), ("sequence_length=64", 16), ("vocab_size=8192", 400)):
        name, _, value = option.partition("=")
        for more in ([f"--{option}"], [f"--{name}", value]):
            arguments = parse_arguments(DataArguments, [*words, *more])
            with pytest.raises(DataError, match=f"{name} is {value}, but the data in .* was prepared with {prepared}"):
                prepare(arguments, progress=False)
    assert prepare(parse_arguments(DataArguments, [*words, "--sequence_length=16"])).directory == directory
    with pytest.raises(DataError, match="validation_source is"):
        prepare(parse_arguments(DataArguments, [*words, "--validation_source=x.txt"]))


def test_options_of_a_section_are_known_as_given(tmp_path):
    words = ["--train.max_steps=1", "--data.vocab_size=999", "--data.order", "prevalence"]
    arguments = parse_arguments(PretrainArguments, words)
    assert arguments.data.given == {"vocab_size", "order"} and DataArguments().given is None


def test_damaged_data_is_reported(text_file, arguments_for):
    packed = prepare(arguments_for(text_file), progress=False)
    os.truncate(packed.directory / "train.bin", 10)
    with pytest.raises(DataError, match="train.bin has 10 bytes"):
        prepare(arguments_for(text_file), progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("step", ["_read", "_make_tokenizer", "_pack", "compute_fingerprint"])
def test_an_interrupted_preparation_leaves_no_files(text_file, arguments_for, cache, monkeypatch, step, error):
    original = getattr(build, step)

    def interrupted(*arguments):
        original(*arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(build, step, interrupted)
        with pytest.raises(error):
            prepare(arguments_for(text_file), progress=False)
    assert left_behind(cache) == []
    assert prepare(arguments_for(text_file), progress=False).directory.is_dir()


def test_a_full_disk_is_reported(text_file, arguments_for, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "_pack", full)
    with pytest.raises(DataError, match=f"prepared data cannot be written to {cache}: No space left on device"):
        prepare(arguments_for(text_file), progress=False)
    assert left_behind(cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("number", [1, 100_000])  # one buffer, which is written late, and many
def test_a_disk_full_of_unpacked_parquet_is_not_blamed_on_the_source(
    tmp_path, arguments_for, cache, monkeypatch, number
):
    table = pa.table({"text": [f"text number {i}" for i in range(number)]})
    with gzip.open(tmp_path / "a.parquet.gz", "wb") as file:
        pq.write_table(table, file)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "w+b"))  # noqa: SIM115 - its user closes it
    with pytest.raises(DataError, match=f"prepared data cannot be written to {cache}: No space left on device"):
        prepare(arguments_for(tmp_path / "a.parquet.gz"), progress=False)
    assert left_behind(cache) == []


def test_an_unusable_cache_is_reported(text_file, arguments_for, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="prepared data cannot be written to .*file/cache: Not a directory"):
        prepare(arguments_for(text_file, cache_dir=str(tmp_path / "file" / "cache")), progress=False)


def test_a_source_that_changes_while_it_is_read_is_an_error(text_file, arguments_for, cache, monkeypatch):
    original = build._pack

    def changes(*arguments):
        text_file.write_text("changed")
        return original(*arguments)

    monkeypatch.setattr(build, "_pack", changes)
    with pytest.raises(DataError, match="text.txt changed while it was read"):
        prepare(arguments_for(text_file), progress=False)
    assert left_behind(cache) == []


def command(text_file, cache, *options):
    return [
        sys.executable,
        "-m",
        "ultrafastbert",
        "prepare-data",
        *("--source", str(text_file), "--cache_dir", str(cache), "--vocab_size", "400", "--sequence_length", "16"),
        *("--max_tokens_per_character", "null", "--validation_fraction", "0.1", *options),
    ]


def test_a_killed_preparation_looks_unfinished_and_is_cleaned_up(text_file, arguments_for, cache):
    program = f"""
import time
from ultrafastbert.pretraining.data import build
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.prepare import prepare
build._check_sequences = lambda *_: time.sleep(1000)  # stays in the middle, with most files written
prepare({arguments_for(text_file)})
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        while not list(cache.glob(".*.partial/validation.bin")):
            assert process.poll() is None
            time.sleep(0.01)
        (partial,) = cache.glob(".*.partial")
        with pytest.raises(DataError, match="did not finish"):
            open_packed(partial)
        prepare(arguments_for(text_file, sequence_length=8), progress=False)
        assert partial.exists()  # it belongs to a living process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert partial.exists()
    prepare(arguments_for(text_file, sequence_length=4), progress=False)
    assert not partial.exists()  # the next preparation removes it
    again = prepare(arguments_for(text_file), progress=False)
    assert f".{again.directory.name}.partial" == partial.name


def test_processes_that_want_the_same_data_build_it_once(text_file, arguments_for, cache):
    processes = [
        subprocess.Popen(command(text_file, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert sum("Of 600 texts, " in messages for _, messages in outputs) == 1
    assert open_packed(outputs[0][0].strip()).directory == prepare(arguments_for(text_file), progress=False).directory


def test_a_process_waits_for_the_one_that_is_preparing(text_file, arguments_for, cache, tmp_path):
    prepared = prepare(arguments_for(text_file, cache_dir=str(tmp_path / "prepared")), progress=False).directory
    cache.mkdir()
    with FileLock(cache / f".{prepared.name}.lock"):
        waiting = subprocess.Popen(
            command(text_file, cache), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while "waiting for it" not in waiting.stderr.readline():
            assert waiting.poll() is None
        shutil.move(prepared, cache / prepared.name)
    output, _ = waiting.communicate()
    assert waiting.returncode == 0 and output.strip() == str(cache / prepared.name)


def test_the_command_reports_errors_in_one_line(tmp_path, cache):
    result = subprocess.run(command(tmp_path / "no.txt", cache), capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [f"error: source {tmp_path / 'no.txt'} does not exist"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocab_size": 10}, "vocab_size is 10; it should be at least 256"),
        ({"sequence_length": 0}, "sequence_length is 0; it should be at least 2"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; it should be greater than 0 and less than 1"),
        ({"max_texts": 0}, "max_texts is 0; it should be greater than 0"),
        ({"max_tokens_per_character": 0}, "max_tokens_per_character is 0; it should be greater than 0"),
        ({"order": "random"}, "order is 'random'; it should be one of source, prevalence"),
        ({"sample_by": "word"}, "sample_by is 'word'; it should be one of line, paragraph"),
        ({"source": []}, r"source is \[\]; it should be a non-empty value"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**options)


def test_the_cache_is_where_the_environment_says(text_file, arguments_for, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    packed = prepare(arguments_for(text_file, cache_dir=None), progress=False)
    assert packed.directory.parent == tmp_path / "xdg" / "ultrafastbert"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        prepare_module._cache_directory(arguments_for(text_file, cache_dir=None)) == tmp_path / ".cache/ultrafastbert"
    )
