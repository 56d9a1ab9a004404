"""After how many of its steps a model's adapter is kept on the way, for its trajectory."""

from __future__ import annotations


def snapshot_steps(steps: int, count: int) -> tuple[int, ...]:
    """Returns the numbers of steps after which a model's adapter is kept, beside its end.

    They are 1/2, 1/4, 1/8, ... of the model's steps, rounded up. Representations move most at the beginning, so early
    snapshots are denser. The last one is at half of the steps, where a cosine schedule still has 18 % of its learning
    rate to give. A later one would lie near the end whether the model has converged or not.

    Args:
      steps: of the model, at least 1.
      count: `tuning.snapshots`.

    Returns:
      At most `count` numbers, rising, each at least 1 and below `steps`; fewer where a model has too few steps.
    """
    kept = {-(-steps // 2**halvings) for halvings in range(1, count + 1)}
    return tuple(sorted(kept - {steps}))
