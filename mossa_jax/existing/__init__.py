"""Models and states that others made, and finished runs: the Python API.

Read in this order:
  compare.py  `layer_states` and `compare`: models, adapters and texts
  folders.py  `compare_saved`: states that lie in folders
  tasks.py    `load_task`: the rows of a task
  saved.py    `states_table`, `save_states`, `load_states`: states with the rows that they belong to
  runs.py     `Run`: a run folder, with its configuration (run_config.py) and its models (run_models.py)
  between_runs.py  several run folders, and paired_rows.py their models over the same prompts
"""
