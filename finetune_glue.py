"""Fine-tunes a model on GLUE or on your own data; the same as `ultrafastbert finetune`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds: no traceback

from ultrafastbert.cli import main  # noqa: E402

if __name__ == "__main__":
    main("finetune")
