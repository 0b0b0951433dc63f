"""Real processes that are killed, or run out of disk, at any moment end as if they had never been stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.driver import UNEXPECTED
from tests.pretraining.data.conftest import make_texts

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "model": {"fff": "1x3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "data": {"vocab_size": 300, "sequence_length": 16, "max_tokens_per_character": None, "validation_fraction": 0.1},
    "train": {"max_steps": 8, "batch_size": 8, "micro_batch_size": 8, "log_every": 2, "eval_every": 4}
    | {"checkpoint_every": 2, "eval_sequences": 16, "precision": "fp32", "max_skipped_fraction": 0.5},
}


def drive(tmp_path, kills, limits, seed=0):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(make_texts(200)))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(SETTINGS | {"data": SETTINGS["data"] | {"source": str(text)}}))
    words = [str(config), str(tmp_path / "run"), str(tmp_path / "cache"), str(seed), str(kills), str(limits)]
    command = [sys.executable, "-m", "tests.faults.driver", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(outcomes) == kills + limits + 2
    assert all(outcome["code"] != UNEXPECTED for outcome in outcomes), done.stderr[-3000:]
    assert outcomes[0]["code"] == outcomes[-1]["code"] == 0, done.stderr[-3000:]
    return outcomes


def assert_as_if_never_stopped(tmp_path):
    """The same weights, tokenizer and prepared data to the last bit; nothing unfinished is left."""
    (whole,), (stopped,) = ((tmp_path / name).glob("text-*") for name in ("cache-whole", "cache"))
    for name in ("train.bin", "validation.bin", "tokenizer/tokenizer.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "run-whole" / "final" / name).read_bytes() == (
            tmp_path / "run" / "final" / name
        ).read_bytes()
    left = [path for path in tmp_path.rglob(".*") if path.name.endswith((".tmp", ".old", ".partial"))]
    assert not left, left


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, budget):
    outcomes = drive(tmp_path, kills=int(16 * budget), limits=0)
    assert sum(outcome["code"] == -signal.SIGKILL for outcome in outcomes) >= 6 * budget
    assert_as_if_never_stopped(tmp_path)


@pytest.mark.slow
def test_a_full_disk_at_random_moments(tmp_path, budget):
    outcomes = drive(tmp_path, kills=0, limits=int(10 * budget))
    assert sum(outcome["code"] == 1 for outcome in outcomes) >= 3 * budget
    assert_as_if_never_stopped(tmp_path)
