"""The one logger of the package."""

import logging

log = logging.getLogger("mossa_jax")
