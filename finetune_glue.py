"""Fine-tunes a model on GLUE or on your own data: `python finetune_glue.py --model out/quickstart/final`."""

import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds: no traceback

from ultrafastbert.cli import run_command  # noqa: E402
from ultrafastbert.training.finetune_arguments import FinetuneArguments  # noqa: E402
from ultrafastbert.training.sweep import finetune_all  # noqa: E402

if __name__ == "__main__":
    run_command(
        finetune_all,
        FinetuneArguments,
        "Fine-tunes a model on GLUE, or on a task of your own, and evaluates it.",
        Path(__file__).parent / "configs" / "glue.yaml",
    )
