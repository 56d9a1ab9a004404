"""Command lines: these files hold flags and nothing else.

flags.py   flags that commands share; from a command line to a process of a run
facts.py   what the processes of a run have in common on their command lines
help.py    the text of --help, and the published configs
mossa.py   the console command, which finds all others
The rest is a file per command.
"""

# The core of `signal`, which is there at once: the module itself takes a while to import, and Ctrl-C may come first.
import _signal
import os
import sys


def end_on_interrupt() -> None:
    """Makes SIGINT end this process as it ends any program: at once, silently, told by the signal (130 in a shell).

    Python would raise KeyboardInterrupt wherever it is: in the middle of an import, in a callback from C++, or not
    before native code returns. A SIGINT that is ignored, as in the background of a script, stays so.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


# A command, and not a program that imports one: `python -m` has this name until the module is found.
if sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "mossa"):
    end_on_interrupt()
