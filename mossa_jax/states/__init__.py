"""Layerwise forward passes of several adapters at once, pooled per prompt inside the layer scan."""

from mossa_jax.states.forward import POOLS, KeptStates, keep_states

__all__ = ["POOLS", "KeptStates", "keep_states"]
