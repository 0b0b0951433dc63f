"""Errors that the user can fix. The command line prints their message without a traceback."""


class UserError(RuntimeError):
    """A problem outside the code: a file, an option, a device. The message names it and what it should be."""

    exit_code = 1


class Interrupted(UserError):
    """A signal stopped the work after its state was saved.

    Args:
        message: what was saved, and how to resume.
        signal: the signal's number. The exit code is 128 + this number, as a shell reports it.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal
