"""CKA of layer states: exact, biased and debiased, with intervals and nulls.

Read in this order:
  estimators.py  the closed forms, from row sums, in float64 on the host
  reference.py   the definitions, slow and explicit, in float64
  gram.py        the row sums, tile by tile on the devices
  null.py        the permutation null; intervals.py  the jackknife intervals
  compare.py     same-layer CKA of pairs of models from kept rows; cells.py  its results as tidy rows
  pairwise.py    CKA of two arrays; matrix.py  CKA of every state against every other
  streamed/      CKA from sums that need no rows
  engine.py      the choice between kept rows and streamed sums, by what each costs
  measures/      similarity measures beside CKA
  layerwise.py, checks.py, kahan.py  shared by several of these
"""

from mossa_jax.similarity.compare import Similarities, compare_states
from mossa_jax.similarity.estimators import ESTIMATORS, UndefinedSimilarity
from mossa_jax.similarity.pairwise import cka

__all__ = ["ESTIMATORS", "Similarities", "UndefinedSimilarity", "cka", "compare_states"]
