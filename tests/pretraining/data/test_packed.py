"""Prepared data is opened without the libraries that prepared it, and damage to it is named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ultrafastbert.pretraining.data import packed as packed_module
from ultrafastbert.pretraining.data.batches import SequenceOrder
from ultrafastbert.pretraining.data.packed import DataError, open_packed
from ultrafastbert.pretraining.data.prepare import prepare


@pytest.fixture
def packed(text_file, arguments_for):
    return prepare(arguments_for(text_file), progress=False)


def test_prepared_data_can_be_opened(packed):
    opened = open_packed(str(packed.directory))
    assert np.array_equal(opened.train, packed.train) and np.array_equal(opened.validation, packed.validation)
    assert opened.train.dtype == np.uint16 and opened.train.shape[1] == opened.sequence_length == 16
    assert opened.train.max() < opened.vocab_size
    assert opened.special_token_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert 0 < opened.unigram_entropy < np.log(opened.vocab_size)


def test_sequences_cannot_be_written(packed):
    with pytest.raises(ValueError, match="read-only"):
        packed.train[0, 0] = 1


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda d: (d / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "manifest.json").write_text("[]"), "not the manifest of prepared data"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff"), "not valid JSON"),
        (lambda d: change_manifest(d, version=99), "version 99"),
        (lambda d: change_manifest(d, rows={"train": 3, "validation": 1}, checksum=None), "train.bin has"),
        (lambda d: change_manifest(d, dtype=None), "lacks"),
        (lambda d: change_manifest(d, rows=None), "lacks"),
        (lambda d: (d / "train.bin").unlink(), "train.bin is missing"),
        (lambda d: (d / "validation.bin").write_bytes(b"\0"), "validation.bin has 1 bytes"),
        (lambda d: (d / "tokenizer" / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda d: change_byte(d / "train.bin"), "is damaged: train.bin"),
        (lambda d: change_byte(d / "validation.bin"), "is damaged"),
        (lambda d: change_byte(d / "tokenizer" / "tokenizer.json"), "is damaged"),
        (lambda d: change_manifest(d, fingerprint="0" * 64), "manifest.json changed since"),
        (lambda d: change_manifest(d, fingerprint="0" * 64, checksum=None), "is damaged"),
        (lambda d: change_manifest(d, unigram_entropy=1.0), "manifest.json changed since"),
        (lambda d: change_manifest(d, special_token_ids={"pad": 0, "mask": 10**6}, checksum=None), "wrong value of"),
        (lambda d: change_manifest(d, vocab_size="400", checksum=None), "wrong value of"),
    ],
)
def test_damage_is_named(packed, damage, message):
    damage(packed.directory)
    with pytest.raises(DataError, match=message):
        open_packed(packed.directory)


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verification_is_remembered_until_a_file_changes(packed, monkeypatch):
    hashed = []
    compute = packed_module.compute_fingerprint
    monkeypatch.setattr(packed_module, "compute_fingerprint", lambda d: hashed.append(d) or compute(d))
    for _ in range(2):
        open_packed(packed.directory)
    assert not hashed  # it was verified when it was prepared
    train = packed.directory / "train.bin"
    stat = train.stat()
    os.utime(train, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    for _ in range(2):
        open_packed(packed.directory)
    assert len(hashed) == 1
    copy = shutil.copytree(packed.directory, packed.directory.with_name("copy"))  # keeps the times
    change_byte(copy / "train.bin")
    os.utime(copy / "train.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DataError, match="copy is damaged"):
        open_packed(copy)


def test_ids_outside_the_vocabulary_are_refused(packed):
    """Also where the fingerprint was computed from them."""
    ids = np.fromfile(packed.directory / "train.bin", "<u2")
    ids[7] = 60_000
    ids.tofile(packed.directory / "train.bin")
    change_manifest(packed.directory, fingerprint=packed_module.compute_fingerprint(packed.directory), checksum=None)
    train = open_packed(packed.directory).train
    with pytest.raises(DataError, match=r"train.bin has the token id 60000; all should be below \d+"):
        SequenceOrder(train, seed=0, shuffle=False, vocab_size=packed.vocab_size).read(0, 2)


def change_manifest(directory, **changes):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def test_a_directory_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a directory"):
        open_packed(tmp_path / "nowhere")


def test_opens_without_the_libraries_that_prepared_it(packed):
    program = """
import sys, types
for name in ("datasets", "tokenizers", "pyarrow", "transformers", "torch", "tqdm"):
    sys.modules[name] = None  # importing it raises ImportError
package = types.ModuleType("ultrafastbert")
package.__path__ = [sys.argv[1]]
sys.modules["ultrafastbert"] = package  # in place of the package's own __init__, which loads the models
from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.packed import open_packed
from ultrafastbert.pretraining.data.prepare import prepare
print(open_packed(sys.argv[2]).train.sum(), prepare(DataArguments(source=sys.argv[2])).train.sum())
"""
    package = str(Path(packed_module.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program, package, str(packed.directory)], capture_output=True, text=True, check=True
    )
    assert list(map(int, result.stdout.split())) == [packed.train.sum()] * 2
