"""Similarity measures beside linear CKA, and transformed states for any of them.

Read in this order:
  same_layer.py  eight measures of same-layer pairs: their definitions, invariances and values
  distances.py   their sums over pairwise distances; subspaces.py  their factorisations
  spectrum.py    the effective dimension of a state
  variants.py    states with standardised dimensions, without their largest components, or with rows of norm 1
"""
