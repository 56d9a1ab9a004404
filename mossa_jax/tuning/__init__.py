"""Tuning: the objective, the population step, the loop with its checkpoints, scores, and the miniature base."""
