"""Processes: one alone, or many that are one run.

life.py         a process from its start to its exit code
failures.py     errors of the system and of libraries, told as refusals
streams.py      output whose reader leaves, or that a full disk does not take
rendezvous.py   how the processes of a run meet
facts.py        what they must have in common, and in what they differ
peers.py        how they watch each other and end together
agreement.py    values that all of them agree on
stop.py         the polite stop on SIGTERM, SIGINT and SIGHUP
interrupts.py   a signal that is handled once
watchdog.py     signs of life, and the end of a process that gives none
"""
