"""Exit codes, and the refusal that carries one."""

DONE = 0
INTERNAL = 1
BAD_CONFIG = 2
BAD_INPUT = 3
NO_ACCESS = 4
NOT_FINITE = 5
DISK = 6
LOST_PEER = 7
STOPPED = 75


class Refusal(Exception):
    """A refusal in one line that names the thing, the value and the way out.

    Attributes:
      code: the process's exit code, one of the constants of this module.
    """

    def __init__(self, code: int, message: str):
        super().__init__(" ".join(str(message).split()))
        self.code = code
