"""Models and states that others made, and finished runs: the Python API.

Read in this order:
  prompts.py       options, checks and warnings about prompts
  passes.py        batches that fit, and progress
  states.py        `layer_states`
  compare.py       `compare`: models, adapters and texts
  prompt_files.py  prompts in JSONL files
  folders.py       `compare_saved`: states that lie in folders
  start.py         `run`: a run from Python
  tasks.py         `load_task`: the rows of a task
  saved.py         `states_table`, `save_states`, `load_states`: states with the rows that they belong to
  runs.py          `Run`: a run folder, with its models (run_models.py)
  between_runs.py  several run folders, and paired_rows.py: their models over the same prompts
"""
