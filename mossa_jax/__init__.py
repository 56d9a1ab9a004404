"""Where multi-task learning happens in a language model, layer by layer: MOSSA with exact CKA, in JAX."""

from mossa_jax.existing.compare import compare, layer_states
from mossa_jax.existing.folders import compare_saved
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.merge import export_merged
from mossa_jax.similarity import cka

__all__ = ["Model", "cka", "compare", "compare_saved", "export_merged", "layer_states", "load_model"]
__version__ = "0.1.0"
