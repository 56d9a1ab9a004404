"""CKA from streamed sums, whose memory does not grow with the number of rows.

Read in this order:
  moments.py  the sums: started, updated by a batch, merged
  values.py   from the sums to CKA, in float64 on the host
  forward.py  several models over prompts, every layer added to its sums as it passes
"""
