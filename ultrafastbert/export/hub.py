"""`ultrafastbert export hub`: a directory for the Hub, whose model loads where only transformers is installed."""

import json
from dataclasses import dataclass
from pathlib import Path

import ultrafastbert
from ultrafastbert.export.card import write_card
from ultrafastbert.export.loading import load_model
from ultrafastbert.export.travelling import CONFIGURATION, MODELING, travelling_code
from ultrafastbert.runs.directory import TRAINING_RECORD
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import copy_tokenizer, new_directory, written_whole
from ultrafastbert.utils.origin import REQUIREMENT
from ultrafastbert.utils.validation import NOT_EMPTY, check_fields


@dataclass
class HubArguments:
    """Options of `ultrafastbert export hub`."""

    model: str
    """Directory of the model, as pretraining and fine-tuning leave it."""
    output_dir: str
    """Directory to create; it must not exist, or be empty."""
    push: str | None = None
    """Repository on the Hub to create, or to update, such as USER/NAME; log in with `hf auth login` first. [null: the
    directory is only written]"""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "model", "output_dir", "push")


def export_hub(arguments: HubArguments) -> None:
    """Writes model, tokenizer, code and model card, pushes them if asked for, and prints how to load the model.

    Raises:
        UserError: the model cannot be loaded, or the directory or the repository cannot be written.
    """
    source = Path(arguments.model)
    model = load_model(source)
    try:
        destination = new_directory(arguments.output_dir)
        with written_whole(destination) as directory:
            model.save_pretrained(directory)
            copy_tokenizer(source, directory)
            _add_code(directory)
            if (source / TRAINING_RECORD).is_file():
                (directory / TRAINING_RECORD).write_bytes((source / TRAINING_RECORD).read_bytes())
            write_card(directory, model, source, arguments.push or destination.name)
    except OSError as error:
        raise UserError(str(error)) from error
    print(f"wrote {destination}: {', '.join(sorted(file.name for file in destination.iterdir()))}")
    where = arguments.push or str(destination)
    if arguments.push:
        _push(destination, arguments.push)
    print(f'load it with {_auto_class(model)}.from_pretrained("{where}", trust_remote_code=True)')


def _add_code(directory: Path) -> None:
    """Writes the model's code, and names the classes in config.json."""
    (directory / REQUIREMENT).unlink()  # the code itself is there
    for name, source in travelling_code(ultrafastbert.__version__).items():
        (directory / name).write_text(source, encoding="utf-8")
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": _reference(CONFIGURATION, ultrafastbert.UltraFastBertConfig)}
    for auto_class, model_class in ultrafastbert.AUTO_CLASSES.items():
        config["auto_map"][auto_class.__name__] = _reference(MODELING, model_class)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _reference(module: str, of: type) -> str:
    return f"{module.rpartition('.')[2]}.{of.__name__}"


def _auto_class(model: object) -> str:
    """The name of the Auto class that loads the model with its head."""
    names = {model_class: auto_class.__name__ for auto_class, model_class in ultrafastbert.AUTO_CLASSES.items()}
    return names[type(model)]


def _push(directory: Path, repository: str) -> None:
    import huggingface_hub

    try:
        huggingface_hub.create_repo(repository, exist_ok=True)
        url = huggingface_hub.upload_folder(repo_id=repository, folder_path=directory).commit_url
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise UserError(f"{directory} is written, but could not be pushed to {repository}: {error}") from error
    print(f"pushed to {url}")
