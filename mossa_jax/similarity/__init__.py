"""CKA of layer states: exact, biased and debiased, with intervals and nulls.

Read in this order:
  estimators.py  the closed forms, from row sums, in float64 on the host
  reference.py   the definitions, slow and explicit, in float64
  gram.py        the row sums, tile by tile on the devices
  null.py        the permutation null; intervals.py  the jackknife intervals
  items.py  sums over rows that belong to items
  compare.py  same-layer CKA of pairs of models from kept rows; combine.py  from its sums to values
  changes.py  changes of CKA; cells.py  values as tidy rows
  pairwise.py    CKA of two arrays; matrix.py  CKA of every state against every other
  turning.py     where the base turns along its depth, read off that matrix
  streamed/      CKA from sums that need no rows
  engine.py      the choice between kept rows and streamed sums, by what each costs
  measures/      similarity measures beside CKA
  layerwise.py, checks.py, kahan.py  shared by several of these
"""

from mossa_jax.similarity.combine import Similarities
from mossa_jax.similarity.compare import compare_states
from mossa_jax.similarity.estimators import ESTIMATORS, UndefinedSimilarity
from mossa_jax.similarity.pairwise import cka

__all__ = ["ESTIMATORS", "Similarities", "UndefinedSimilarity", "cka", "compare_states"]
