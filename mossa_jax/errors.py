"""The exit codes of a process, and the refusal that carries one."""

DONE = 0
"""All is done."""
INTERNAL = 1
"""An error of the program itself; the only code that comes with a traceback."""
BAD_CONFIG = 2
"""A flag or a field of the configuration is wrong."""
BAD_INPUT = 3
"""Data or a model is refused."""
NO_ACCESS = 4
"""A model, a data set or a store denies access."""
NOT_FINITE = 5
"""The loss or the gradient of a model was not finite too often."""
DISK = 6
"""A disk is full, or a store does not take a file."""
LOST_PEER = 7
"""Another process is lost, or did not come in time."""
STOPPED = 75
"""Stopped on request, with the state saved: the same command continues."""


class Refusal(Exception):
    """A refusal in one line that names the thing, the value and the way out.

    Attributes:
      code: the exit code of the process, one of the constants of this module.
    """

    def __init__(self, code: int, message: str):
        """Joins the message into one line.

        Args:
          code: one of the constants of this module.
          message: the text; line breaks and repeated spaces become single spaces.
        """
        super().__init__(" ".join(str(message).split()))
        self.code = code
