"""A look at the data before a run."""
