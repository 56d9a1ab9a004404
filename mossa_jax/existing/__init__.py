"""Models and states that others made: the Python API."""
