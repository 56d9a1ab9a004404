"""A whole run, stage by stage; each stage is resumable. Called, it is `mossa.run` of the Python API."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """This room, which can also be called: `mossa_jax.run` is its name and that of a public function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Starts a run; arguments and result are those of `mossa_jax.existing.start.run`."""
        # Found when it is called, as every public function is: the API imports the run, and not the other way round.
        return import_module("mossa_jax.existing.start").run(*arguments, **options)


sys.modules[__name__].__class__ = _Room
