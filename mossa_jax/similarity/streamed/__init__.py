"""Similarity from streamed sums, whose memory does not grow with the number of rows."""
