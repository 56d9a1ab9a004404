"""Command lines: these files hold flags and nothing else.

flags.py   flags that commands share; from a command line to a process of a run
help.py    the text of --help, and the published configs
mossa.py   the console command, which finds all others
The rest is a file per command.
"""

import os
import sys

# `python -m` has this name until the module is found.
if sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "mossa"):
    from mossa_jax.processes.interrupts import end_on_interrupt

    end_on_interrupt()
