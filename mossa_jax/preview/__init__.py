"""A preview of a run's data before anything is trained.

Read in this order: `dataset` (reads and counts), `text` (the table). What would spoil a result
stands in `findings.warning_kinds`.
"""
