"""What is known of the rows, as orthogonal projections of the row space: template, then answer, then item, then rest.

Each factor takes what the factors before it leave. A factor with many levels also takes a share of everything that
varies below it, by its degrees of freedom alone; `FactorDesign.parts` gives that share back.

Shape letters: n rows, k columns of a basis, c columns of a factor, F factors that are there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

TEMPLATE, ANSWER, ITEM, REST = FACTORS = ("template", "answer", "item", "rest")
"""The factors in the order in which they are taken out; the rest is what is left."""

LEAST_REST = 0.1
"""A factor must leave at least this share of the rows' degrees of freedom, or it counts as not there."""

# A column whose part outside the earlier ones is below this share of its norm is in their span.
_IN_SPAN = 1e-6


@dataclass(frozen=True)
class Factor:
    """What one factor says of n rows.

    Attributes:
      labels: [n] int, equal for rows of one level; None if the factor is continuous.
      columns: [n, c] float64, the continuous factor; None if it has levels.
    """

    labels: Int[np.ndarray, " n"] | None = None
    columns: Float[np.ndarray, "n c"] | None = None

    def select(self, rows: Bool[np.ndarray, " n"]) -> Factor:
        """Returns the factor of these rows alone; levels are numbered from 0, columns are centred."""
        if self.labels is not None:
            return Factor(labels=np.unique(np.asarray(self.labels)[rows], return_inverse=True)[1].reshape(-1))
        assert self.columns is not None
        columns = np.asarray(self.columns, np.float64)[rows]
        return Factor(columns=columns - columns.mean(0))

    def first(self, rows: int) -> Factor:
        """Returns the factor of the first so many rows."""
        return Factor(
            None if self.labels is None else self.labels[:rows], None if self.columns is None else self.columns[:rows]
        )

    @property
    def levels(self) -> int:
        """Number of levels, or of columns."""
        if self.labels is not None:
            return int(self.labels.max(initial=-1)) + 1
        assert self.columns is not None
        return self.columns.shape[1]

    @property
    def matrix(self) -> Float[np.ndarray, "n c"]:
        """The factor as columns: one per level, or its own."""
        if self.labels is not None:
            return (self.labels[:, None] == np.arange(self.levels)).astype(np.float64)
        assert self.columns is not None
        return self.columns


@dataclass(frozen=True)
class Space:
    """A subspace of the row space that contains the constant: the means of groups, and further columns.

    Attributes:
      labels: [n] int64, the group of each row, from 0.
      basis: [n, k] float64, orthonormal and orthogonal to the groups.
    """

    labels: Int[np.ndarray, " n"]
    basis: Float[np.ndarray, "n k"]

    @property
    def degrees(self) -> int:
        """Dimensions beside the constant."""
        return int(self.labels.max(initial=0)) + self.basis.shape[1]

    def means(self, rows: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Returns the mean of each row's group."""
        totals = np.zeros((int(self.labels.max(initial=0)) + 1, rows.shape[1]))
        np.add.at(totals, self.labels, rows)
        return (totals / np.bincount(self.labels)[:, None])[self.labels]

    def project(self, rows: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Projects columns of the row space onto this space."""
        return self.means(rows) + self.basis @ (self.basis.T @ rows)


def span(factors: Sequence[Factor], rows: int) -> Space:
    """Returns the space that the constant and these factors span together.

    Args:
      factors: of the same n rows, as from `Factor.select`.
      rows: n.
    """
    with_levels = [factor for factor in factors if factor.labels is not None]
    # The factor with the most levels is left as groups, so that no column per level is ever made of it.
    largest = max(with_levels, key=lambda factor: factor.levels, default=None)
    labels = np.zeros(rows, np.int64) if largest is None else np.asarray(largest.labels, np.int64)
    space = Space(labels, np.zeros((rows, 0)))
    columns = [factor.matrix for factor in factors if factor is not largest]
    return Space(labels, _orthonormal(space, np.concatenate(columns, 1)) if columns else space.basis)


def _orthonormal(groups: Space, columns: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
    """Returns an orthonormal basis of what the columns add to the groups."""
    from scipy.linalg import qr

    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    columns = columns - groups.means(columns)
    if not columns.size:
        return np.zeros((len(columns), 0))
    q, r, _ = qr(columns, mode="economic", pivoting=True)
    q = q[:, : int((np.abs(np.diag(r)) > _IN_SPAN).sum())]
    # A small pivot enlarges the rounding of the first subtraction, so the means are taken out once more.
    return np.linalg.qr(q - groups.means(q))[0]


@dataclass(frozen=True)
class FactorDesign:
    """The factors of n rows that count, and the spaces that they span one after the other.

    Attributes:
      factors: by name, those that are there, in the order of `FACTORS`.
      notes: by name, why a factor is not there.
      rows: n.
      levels: by name, levels or columns of each factor; 0 where a factor was not given.
    """

    factors: dict[str, Factor]
    notes: dict[str, str]
    rows: int
    levels: dict[str, int]

    @functools.cached_property
    def spaces(self) -> dict[str, Space]:
        """By name, the span of a factor that is there and of all before it."""
        names = list(self.factors)
        return {
            name: span([self.factors[each] for each in names[: at + 1]], self.rows) for at, name in enumerate(names)
        }

    def space_up_to(self, name: str) -> Space:
        """Returns the span of all factors up to this one, whether it is there or not."""
        upto = [each for each in FACTORS[: FACTORS.index(name) + 1] if each in self.factors]
        return self.spaces[upto[-1]] if upto else span([], self.rows)

    @property
    def degrees(self) -> dict[str, int]:
        """By name, the dimensions that each factor adds, and those that are left for the rest."""
        degrees, before = {}, 0
        for name in FACTORS[:-1]:
            degrees[name] = self.space_up_to(name).degrees - before
            before += degrees[name]
        return degrees | {REST: self.rows - 1 - before}

    @property
    def unknown(self) -> set[str]:
        """Names of factors whose part cannot be told; a factor with one level is not there, but its part is 0."""
        return {name for name in self.notes if self.levels[name] != 1}

    @functools.cached_property
    def parts(self) -> Float[np.ndarray, "4 4"]:
        """The matrix that turns what each projection holds into what each factor accounts for.

        If rows vary by independent effects of the levels with kernels `G_g = Z_g Z_g^T` (for the rest the identity),
        the projection `P_f` holds `sum_g w_g tr(P_f G_g)`; `tr(P_f G_g)` is 0 for factors before f, so the weights
        follow from the last to the first, and factor g accounts for `w_g sum_f tr(P_f G_g)`. Each column sums to one:
        the sum over factors stays as it is.

        Returns:
          [4, 4] float64 in the order of `FACTORS`; rows and columns of factors that are not there are zero.

        References:
          Henderson 1953, "Estimation of variance and covariance components", method 3.
        """
        names = [*self.factors, REST]
        count = len(names)
        # [F + 1, F + 1] of tr(P_f G_g).
        moments = np.zeros((count, count))
        for column, name in enumerate(names[:-1]):
            effects = self.factors[name].matrix
            upto = [np.square(effects.sum(0)).sum() / self.rows]
            upto += [np.square(self.spaces[each].project(effects)).sum() for each in names[: column + 1]]
            moments[: column + 1, column] = np.diff(upto)
        moments[:, -1] = [self.degrees[name] for name in names]
        weights = np.linalg.inv(moments)
        matrix = np.zeros((len(FACTORS), len(FACTORS)))
        at = [FACTORS.index(name) for name in names]
        matrix[np.ix_(at, at)] = moments.sum(0)[:, None] * weights
        return matrix


def factor_design(factors: dict[str, Factor], kept: Bool[np.ndarray, " n"]) -> FactorDesign:
    """Decides which factors are there, in the order of `FACTORS`.

    A factor is not there if it is not known, has one level, is a function of the factors before it, or leaves fewer
    than `LEAST_REST` of the degrees of freedom: with as many levels as rows it would explain anything.

    Args:
      factors: by name; those that are unknown are left out.
      kept: [n] bool, the rows that count.
    """
    rows = int(kept.sum())
    present: dict[str, Factor] = {}
    notes: dict[str, str] = {}
    levels = dict.fromkeys(FACTORS[:-1], 0)
    before = 0
    for name in FACTORS[:-1]:
        if name not in factors:
            notes[name] = f"no {name} is known"
            continue
        factor = factors[name].select(kept)
        levels[name] = factor.levels
        if factor.labels is not None and factor.levels < 2:
            notes[name] = f"one {name}"
            continue
        if factor.levels >= rows:
            notes[name] = f"as many {name}s as prompts: it cannot be told from the rest"
            continue
        degrees = span([*present.values(), factor], rows).degrees
        if degrees == before:
            notes[name] = f"{name} follows from {' and '.join(present)}"
        elif rows - 1 - degrees < max(LEAST_REST * (rows - 1), 1):
            notes[name] = f"{levels[name]} levels among {rows} prompts leave nothing: it cannot be told from the rest"
        else:
            present[name], before = factor, degrees
    return FactorDesign(present, notes, rows, levels)
