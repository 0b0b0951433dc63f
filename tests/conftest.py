"""Fixtures of the whole suite: a small prepared data set, a small pretraining run on it, a small model.

Each process uses one thread: the tests run in several processes at once, and threads that wait for each other would
only slow them down. The variables are set before PyTorch is imported, and inherited by processes that tests start.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on a CPU; Triton reads this when it is imported

import json  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast, set_seed  # noqa: E402

from ultrafastbert.modeling_ultrafastbert import UltraFastBertForMaskedLM  # noqa: E402
from ultrafastbert.pretraining.arguments import ModelArguments, PretrainArguments, TrainArguments  # noqa: E402
from ultrafastbert.pretraining.data.arguments import DataArguments  # noqa: E402
from ultrafastbert.pretraining.data.packed import FORMAT, VERSION, compute_fingerprint  # noqa: E402
from ultrafastbert.pretraining.trainer import pretrain  # noqa: E402


def pytest_addoption(parser):
    help = "how much longer than by default the tests in tests/faults search, such as 20"
    parser.addoption("--faults-budget", type=float, default=1.0, help=help)


SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB, LENGTH = 60, 32


def sentences(rows: int, seed: int) -> np.ndarray:
    """(rows, LENGTH) uint16: token t is mostly followed by t + 1, so there is something to learn; some [SEP]."""
    generator = np.random.default_rng(seed)
    steps = np.where(generator.random((rows, LENGTH)) < 0.9, 1, generator.integers(0, VOCAB, (rows, LENGTH)))
    tokens = len(SPECIAL) + steps.cumsum(axis=1) % (VOCAB - len(SPECIAL))
    tokens[:, 11] = SPECIAL["sep"]
    return tokens.astype("<u2")


@pytest.fixture(scope="session")
def packed_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed")
    rows = {"train": sentences(300, seed=0), "validation": sentences(40, seed=1)}
    for split, tokens in rows.items():
        tokens.tofile(directory / f"{split}.bin")

    names = [f"[{name.upper()}]" for name in SPECIAL] + [f"w{i}" for i in range(VOCAB - len(SPECIAL))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": f"[{name.upper()}]" for name in SPECIAL},
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(directory / "tokenizer")

    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": "uint16",
        "rows": {split: len(tokens) for split, tokens in rows.items()},
        "sequence_length": LENGTH,
        "vocab_size": VOCAB,
        "fingerprint": compute_fingerprint(directory),
        "unigram_entropy": float(np.log(VOCAB - len(SPECIAL))),
        "special_token_ids": SPECIAL,
        "request": {"options": {"order": "source"}},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture
def make_arguments(packed_directory, tmp_path):
    """Arguments of a small run; keywords change the training section, `fff`, `seed`, `resume` and `output_dir`."""

    def make(fff="2x3", seed=0, resume="auto", output_dir=tmp_path / "run", **train):
        options = {"max_steps": 12, "batch_size": 16, "micro_batch_size": 4, "log_every": 2, "eval_every": 6}
        options |= {"checkpoint_every": 4, "eval_sequences": 16, "precision": "fp32"}
        return PretrainArguments(
            model=ModelArguments(fff=fff, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
            data=DataArguments(source=str(packed_directory)),
            train=TrainArguments(**(options | train)),
            output_dir=str(output_dir),
            seed=seed,
            resume=resume,
        )

    return make


@pytest.fixture(scope="session")
def small_model(packed_directory, tmp_path_factory):
    """The directory of a small pretrained model, as pretraining leaves it: masked language model and tokenizer."""
    directory = tmp_path_factory.mktemp("small") / "final"
    set_seed(5)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ModelArguments(fff="1x3", initializer_range=0.2, **size)
    UltraFastBertForMaskedLM(model.build_config(VOCAB, LENGTH)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(packed_directory / "tokenizer").save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def small_run_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("small") / "run"


@pytest.fixture
def small_run(small_run_directory, make_arguments):
    """The directory of a pretraining run of 12 steps with three checkpoints; tests that change it should copy it."""
    if not small_run_directory.exists():
        pretrain(make_arguments(output_dir=small_run_directory, keep_checkpoints=9))
    return small_run_directory


@pytest.fixture
def sigint():
    """SIGINT has its default effect, even if the tests run in the background, where a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
