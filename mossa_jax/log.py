"""The logger of the package. The process's life (`processes/life.py`) sends it to the terminal."""

import logging

log = logging.getLogger("mossa_jax")
