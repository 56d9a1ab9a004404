"""Before you pay: the programs of a run compiled for hardware that is not here, and what the whole run takes on it."""
