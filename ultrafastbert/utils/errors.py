"""Errors that a person can mend: command lines show their message and leave out the traceback."""


class UserError(RuntimeError):
    """Something outside the code is wrong; the message names it and says what it should be."""

    exit_code = 1


class Interrupted(UserError):
    """A signal stopped the work, whose state is safe; the exit code is the shell's, 128 + the signal's number."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal
