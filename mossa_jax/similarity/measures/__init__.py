"""Similarity measures beside linear CKA, and transformed states for any of them.

Read in this order:
  same_layer.py  seven measures of same-layer pairs: their definitions, invariances and values
  distances.py   what they need of pairwise distances; subspaces.py  and of factorisations
  spectrum.py    how many dimensions a state uses
  variants.py    states standardised, or without their largest components
"""
