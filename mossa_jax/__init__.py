"""Where multi-task learning happens in a language model, layer by layer: MOSSA with exact CKA, in JAX.

The public functions are imported on first use, so that `import mossa_jax` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mossa_jax.errors import Refusal
    from mossa_jax.existing.compare import compare
    from mossa_jax.existing.folders import compare_saved
    from mossa_jax.existing.runs import Run
    from mossa_jax.existing.saved import load_states, save_states, states_table
    from mossa_jax.existing.start import run
    from mossa_jax.existing.states import layer_states
    from mossa_jax.existing.tasks import load_task
    from mossa_jax.llama.files.load import Model, load_model
    from mossa_jax.llama.files.merge import export_merged
    from mossa_jax.similarity import cka
    from mossa_jax.states import TokenStates
    from mossa_jax.tasks import Example

__all__ = [
    "Example",
    "Model",
    "Refusal",
    "Run",
    "TokenStates",
    "cka",
    "compare",
    "compare_saved",
    "export_merged",
    "layer_states",
    "load_model",
    "load_states",
    "load_task",
    "run",
    "save_states",
    "states_table",
]
__version__ = "0.1.0"

_HOMES = {
    "Example": "tasks",
    "Model": "llama.files.load",
    "Refusal": "errors",
    "Run": "existing.runs",
    "TokenStates": "states",
    "cka": "similarity",
    "compare": "existing.compare",
    "compare_saved": "existing.folders",
    "export_merged": "llama.files.merge",
    "layer_states": "existing.states",
    "load_model": "llama.files.load",
    "load_states": "existing.saved",
    "load_task": "existing.tasks",
    "save_states": "existing.saved",
    "states_table": "existing.saved",
}


def __getattr__(name: str) -> Any:
    """Imports a public function, or a room of the package, when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    room = f"{__name__}.{name}"
    if not name.startswith("_"):
        try:
            return import_module(room)
        except ModuleNotFoundError as error:
            if error.name != room:
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
