"""A preview of a run's data before anything is trained.

Read in this order: `dataset` (reads and counts), `checks` (what would spoil a result), `text` (the table).
"""
