"""Processes: one alone, or many that are one run.

life.py         a process from its start to its exit code
rendezvous.py   how the processes of a run meet
peers.py        how they watch each other and end together
agreement.py    values that all of them agree on
stop.py         the polite stop on SIGTERM and SIGINT
watchdog.py     signs of life, and the end of a process that gives none
"""
