"""What a pretraining run saves and loads: checkpoints, the final model, and its configuration file."""

import platform
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers import __version__ as transformers_version

from ultrafastbert.pretraining.arguments import ModelArguments, PretrainArguments, TrainArguments
from ultrafastbert.pretraining.data.packed import PackedData
from ultrafastbert.pretraining.evaluation import Evaluation
from ultrafastbert.pretraining.schedule import Progress
from ultrafastbert.runs.checkpoints import (
    CheckpointError,
    read_checkpoint,
    read_record,
    save_checkpoint,
    write_directory,
    write_record,
)
from ultrafastbert.runs.directory import CHECKPOINTS, CONFIG, FINAL, TRAINING_RECORD, run_of
from ultrafastbert.runs.settings import changed_settings, refuse_changes
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically


class Checkpointer:
    """Saves and loads the state of a run: that of the model, the optimiser and the random generators, and progress."""

    def __init__(
        self, arguments: PretrainArguments, data: PackedData, model: PreTrainedModel, accelerator: Accelerator
    ):
        self.arguments, self.data, self.model, self.accelerator = arguments, data, model, accelerator
        self.output = Path(arguments.output_dir)
        self.saved_step: int | None = None

    def load(self, checkpoint: Path, step: int) -> None:
        """Loads model, optimiser and random generators from the checkpoint of a step."""
        try:
            self.accelerator.load_state(str(checkpoint))
        except Exception as error:  # errors of torch, safetensors and pickle
            raise CheckpointError(f"checkpoint {checkpoint} cannot be loaded: {error}") from error
        if run_of(checkpoint) == self.output.resolve():
            self.saved_step = step

    def save(self, progress: Progress) -> Path:
        """Writes a checkpoint, unless that of this step exists, and returns its path."""
        directory = self.output / CHECKPOINTS
        if self.saved_step != progress.step:
            content = {
                "progress": asdict(progress),
                "arguments": self.arguments.to_dict(),
                "config": self.model.config.to_dict(),
                "data_directory": str(self.data.directory.resolve()),
                "data_fingerprint": self.data.fingerprint,
            }
            save_checkpoint(self.accelerator, directory, progress.step, content, self.arguments.train.keep_checkpoints)
            self.saved_step = progress.step
        return directory / f"step-{progress.step}"

    def save_final(self, progress: Progress, evaluation: Evaluation) -> Path:
        """Writes the trained model with its tokenizer to `final`, and returns its path."""
        final = self.output / FINAL
        record = asdict(progress) | asdict(evaluation)
        record |= {"unigram_entropy": self.data.unigram_entropy, "data_fingerprint": self.data.fingerprint}

        def write(directory: Path) -> None:
            if self.accelerator.is_main_process:
                self.model.save_pretrained(directory)
                AutoTokenizer.from_pretrained(self.data.tokenizer_directory).save_pretrained(directory)
                write_record(directory, TRAINING_RECORD, record)

        try:
            write_directory(final, write, self.accelerator)
        except Exception as error:  # a full disk is an OSError or an error of safetensors
            raise UserError(
                f"the trained model could not be written to {final}: {error}; make room and resume with --resume auto"
                f" from the last checkpoint in {self.output / CHECKPOINTS}"
            ) from error
        return final

    def write_config(self) -> None:
        """Writes the options of the run, with the versions and the data as comments."""
        if self.accelerator.is_main_process:
            python = platform.python_version()
            text = f"# torch {torch.__version__}, transformers {transformers_version}, Python {python}\n"
            text += f"# data: {self.data.directory}, fingerprint {self.data.fingerprint}\n"
            settings = self.arguments.to_dict() | {"resume": "auto"}  # using the file again resumes the run
            text += yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
            write_atomically(self.output / CONFIG, text)


def read_progress(
    checkpoint: Path, arguments: PretrainArguments, data: PackedData, accelerator: Accelerator
) -> Progress:
    """The progress at a checkpoint; prints the training options that have changed since.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
        UserError: it is of another model, other data, another seed or another optimiser.
    """
    content = read_checkpoint(checkpoint)
    before = content["arguments"] | {"data_fingerprint": content["data_fingerprint"]}
    # an option that the checkpoint lacks is newer, and its default is what the run had
    for section, options in (("model", ModelArguments), ("train", TrainArguments)):
        before[section] = asdict(options()) | before[section]
    changes = changed_settings(before, arguments.to_dict() | {"data_fingerprint": data.fingerprint})
    fixed = {
        name: change
        for name, change in changes.items()
        if name.startswith("model.") or name in ("seed", "data_fingerprint", "train.optimizer")
    }
    refuse_changes(f"checkpoint {checkpoint}", fixed, "Choose another output_dir, or resume=never to start again.")
    for name, (old, new) in changes.items():
        if name.startswith("train."):
            accelerator.print(f"changed since the checkpoint: {name} was {old!r} and is {new!r}")
    try:
        return Progress.from_dict(content["progress"])
    except TypeError as error:
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its progress has other fields: {error}") from error


def step_of_final(output: Path) -> int | None:
    """The step at which the model in `final` was written; None if there is none, or if it is damaged.

    Version 0.1 wrote no hashes; of its models only what can be read at all is recognised.
    """
    final = output / FINAL
    record = read_record(final, TRAINING_RECORD)
    if record is None:
        return None
    try:
        if "model.safetensors" not in record.get("files", {}):
            AutoConfig.from_pretrained(final)
            AutoTokenizer.from_pretrained(final)
            load_file(final / "model.safetensors")
        return record["step"]
    except Exception:  # of JSON, tokenizers, safetensors: whatever damage causes
        return None
