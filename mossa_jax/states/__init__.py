"""Layer states: forward passes of several models at once, pooled per prompt inside the scan over layers.

Read in this order:
  forward.py  the compiled pass: all models over one batch of packed prompts, layer by layer
  shapes.py   the sizes of its programs, chosen once for all lists of prompts of a run
  prompts.py  packed prompts on a mesh, and the batches that the pass runs over
  keep.py     states of every prompt and layer, kept on the devices
  tokens.py   states of every token, on the host
  folders.py  states that another program saved to a folder
  parity.py   states and logits compared with those of transformers on torch
"""

from mossa_jax.states.forward import POOLS
from mossa_jax.states.keep import KeptStates, keep_states
from mossa_jax.states.prompts import PassConfig
from mossa_jax.states.shapes import PassShape
from mossa_jax.states.tokens import TokenStates, token_states

__all__ = ["POOLS", "KeptStates", "PassConfig", "PassShape", "TokenStates", "keep_states", "token_states"]
