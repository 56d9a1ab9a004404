"""The base model on the devices, where one copy has to be enough."""

from __future__ import annotations

from collections.abc import Callable

import jax

from mossa_jax.llama.files.load import Model


class BaseModel:
    """The base model, loaded on first use; it is on one mesh at a time."""

    def __init__(self, load: Callable[[jax.sharding.Mesh], Model]):
        """Loads nothing yet.

        Args:
          load: reads the model onto a mesh.
        """
        self._load = load
        self._model: Model | None = None

    def on(self, mesh: jax.sharding.Mesh) -> Model:
        """Returns the model on a mesh; a copy on another mesh is released first."""
        if self._model is None or self._model.mesh != mesh:
            self.release()
            self._model = self._load(mesh)
        return self._model

    def release(self) -> None:
        """Frees the memory on the devices; the next use loads the model again."""
        self._model = None
