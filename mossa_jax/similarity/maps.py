"""Maps of states in the plane: principal components, and t-SNE for neighbourhoods.

Shape letters: n rows, P dimensions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

PCA, TSNE = "pca", "tsne"
METHODS = (PCA, TSNE)

_PERPLEXITY = 30

_LEAST_ROWS = 5


def principal_plane(points: Float[np.ndarray, "n P"]) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " 2"]]:
    """Projects rows on their first two principal components.

    Returns:
      The coordinates, and the share of the variance along each; NaN if the rows do not vary.
    """
    from sklearn.decomposition import PCA as Components

    points = np.asarray(points, np.float64)
    if not _varies(points):
        return np.full((len(points), 2), np.nan), np.full(2, np.nan)
    model = Components(n_components=2, svd_solver="full")
    return model.fit_transform(points), model.explained_variance_ratio_


def neighbour_map(points: Float[np.ndarray, "n P"], seed: int) -> Float[np.ndarray, "n 2"]:
    """Lays rows out by t-SNE, which keeps neighbourhoods; distances between groups mean nothing.

    The layout starts from the principal plane. Run it under `threadpoolctl.threadpool_limits(1)` for equal maps: the
    order of sums over threads changes roundings, which grow.

    Args:
      points: [n, P] finite.
      seed: of the optimiser.

    Returns:
      The coordinates; NaN if the rows do not vary.

    References:
      van der Maaten and Hinton 2008, "Visualizing data using t-SNE"; Kobak and Berens 2019, "The art of using t-SNE
      for single-cell transcriptomics" (the start).
    """
    from sklearn.manifold import TSNE as Layout

    points = np.asarray(points, np.float64)
    start, _ = principal_plane(points)
    if not np.isfinite(start).all():
        return start
    # A start of this size leaves the first steps of the optimiser free.
    start = (1e-4 / start[:, 0].std() * start).astype(np.float32)
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    layout = Layout(perplexity=perplexity, init=start, learning_rate="auto", random_state=seed)
    return layout.fit_transform(points - points.mean(0)).astype(np.float64)


def _varies(points: Float[np.ndarray, "n P"]) -> bool:
    return (
        len(points) >= _LEAST_ROWS and points.shape[1] > 1 and bool(points.std(0).max() > 1e-12 * np.abs(points).max())
    )
