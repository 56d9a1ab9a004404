"""CKA of layer states: exact, biased and debiased, with intervals and nulls."""

from mossa_jax.similarity.compare import Similarities, compare_states
from mossa_jax.similarity.estimators import ESTIMATORS, UndefinedSimilarity
from mossa_jax.similarity.pairwise import cka

__all__ = ["ESTIMATORS", "Similarities", "UndefinedSimilarity", "cka", "compare_states"]
