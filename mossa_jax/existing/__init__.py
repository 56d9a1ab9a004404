"""Models and states that others made: the Python API.

Read in this order:
  compare.py  `layer_states` and `compare`: models, adapters and texts
  folders.py  `compare_saved`: states that lie in folders
  tasks.py    `load_task`: the rows of a task
  saved.py    `states_table`, `save_states`, `load_states`: states with the rows that they belong to
"""
