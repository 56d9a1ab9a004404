"""Models and states that others made: the Python API.

Read in this order:
  compare.py  `layer_states` and `compare`: models, adapters and texts
  folders.py  `compare_saved`: states that lie in folders
"""
