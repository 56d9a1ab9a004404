"""Thin command-line mains; flags live here and nothing else."""
