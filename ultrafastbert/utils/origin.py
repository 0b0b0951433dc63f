"""Saved models name this package, for people who load one without it.

Transformers can name a missing package only for code that comes with a model. So every saved model comes with
`requires_ultrafastbert.py`, and its `config.json` refers to it under `auto_map`:

- Where the package is imported, transformers uses the package and does not read the file.
- Elsewhere transformers asks for `trust_remote_code=True`. With it, transformers says `pip install ultrafastbert` if
  the package is missing; otherwise the file imports the package, and the model loads.
"""

from pathlib import Path

REQUIREMENT = "requires_ultrafastbert.py"
"""The file beside `config.json`."""

AUTO_MAP = {"AutoConfig": "requires_ultrafastbert.UltraFastBertConfig"}
"""What `config.json` says. Importing the package registers the models, so none of them is needed here."""

SOURCE = '''"""This model needs the package ultrafastbert: `pip install ultrafastbert`, then `import ultrafastbert`."""

from types import SimpleNamespace

import ultrafastbert

# What transformers calls. Nothing is registered: the package did that, and its code is not to be saved with models.
UltraFastBertConfig = SimpleNamespace(
    from_pretrained=ultrafastbert.UltraFastBertConfig.from_pretrained, register_for_auto_class=lambda: None
)
'''


def write_requirement(directory: Path) -> None:
    """Writes the file into the directory of a model, which is created if needed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / REQUIREMENT).write_text(SOURCE, encoding="utf-8")
