"""CKA from streamed sums, whose memory does not grow with the number of rows.

Read in this order:
  moments.py  the sums: how they start, take a batch and merge
  values.py   from the sums to CKA, in float64 on the host
  forward.py  runs several models over prompts and adds every layer to its sums
"""
