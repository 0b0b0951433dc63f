"""Pretrains an encoder; the same as `ultrafastbert pretrain`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds: no traceback

from ultrafastbert.cli import main  # noqa: E402

if __name__ == "__main__":
    main("pretrain")
