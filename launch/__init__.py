"""Command lines: these files hold flags and nothing else.

flags.py   flags that commands share; from a command line to a process of a run
help.py    the text of --help, and the published configs
mossa.py   the console command, which finds all others
The rest is a file per command.
"""
