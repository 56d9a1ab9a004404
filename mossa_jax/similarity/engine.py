"""The two engines of a comparison, kept rows and streamed moments: their costs, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from mossa_jax.devices.memory import device_room, host_memory
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.log import log
from mossa_jax.similarity.gram import tile_size
from mossa_jax.similarity.streamed.moments import blocks, crossed_pairs, strips

KEPT, MOMENTS = "kept", "moments"

MEMORY_SHARE = 0.5
"""Share of a device that a comparison may take; weights and the forward pass need the rest."""


@dataclass(frozen=True)
class Cost:
    """The cost of one engine.

    Attributes:
      bytes: memory of one device that the comparison takes.
      flops: floating-point operations on all devices together.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class Estimate:
    """The costs of both engines for the same comparison.

    Attributes:
      kept: cost of keeping the rows.
      moments: cost of streaming the sums.
      pool: of the states: `last` or `mean` makes every prompt a row, `all` every token.
    """

    kept: Cost
    moments: Cost
    pool: str


def estimate_costs(
    models: int, layers: int, rows: int, width: int, pairs: Sequence[tuple[int, int]], devices: int, pool: str
) -> Estimate:
    """Estimates the costs of same-layer CKA of pairs of models, without permutations.

    Args:
      models: M.
      layers: K, with the embedding and the final norm.
      rows: n prompts; or tokens if `pool` is "all".
      width: D.
      pairs: (a, b) indices of models.
      devices: number of devices that rows (kept) or sums (moments) are spread over.
      pool: of the states; "all" makes every token a row.
    """
    cross = len(crossed_pairs(pairs))
    # Kept rows: all layers are spread; one layer's centred rows are whole on every device while its tiles are dealt.
    layer = models * rows * width
    tile = tile_size(rows)
    kept = Cost(
        # Float32: a share of all rows; one layer's rows, gathered and centred; one [M, t, t] Gram tile.
        bytes=4 * (-(-layers * layer // devices) + 2 * layer + models * tile**2),
        # The upper half has n (n + t) / 2 entries, since diagonal tiles are computed whole: 2 D operations each for the
        # Gram matrix of a model, and 2 for each of the M + C products of two Gram matrices.
        flops=layers * (models * rows * (rows + tile) * width + (models + cross) * rows * (rows + tile)),
    )
    count, block = blocks(width)
    # Blocks on and above the diagonal of X^T X, [M, U, d, d]; whole products of two models, [C, D', D'].
    own_entries = models * block**2 * count * (count + 1) // 2
    # More entries are multiplied than kept: a strip of blocks reaches below the diagonal.
    multiplied = models * sum((stop - start) * (count * block - start) for start, stop in strips(width))
    cross_entries = cross * (count * block) ** 2
    moments = Cost(
        # The D x D sums in float32, and a compensation of the same size. Sums that are vectors are not counted.
        bytes=4 * 2 * layers * -(-(own_entries + cross_entries) // devices),
        flops=2 * layers * rows * (multiplied + cross_entries),
    )
    return Estimate(kept, moments, pool)


def memory_per_device() -> int:
    """Returns the memory in bytes of a device of this process; if it is unknown, a device's share of the host's."""
    return int(device_room(jax.local_devices()[0]) or host_memory() // jax.local_device_count())


def choose(costs: Estimate, memory: int | None = None, engine: str = "auto") -> str:
    """Chooses the engine, and logs why at debug level.

    Kept rows give intervals and p-values, so they are used whenever they fit; except for "all" tokens, where their
    n^2 D operations must also be fewer than those of the moments.

    Args:
      costs: from `estimate_costs`.
      memory: of a device, in bytes; by default that of this process's first device.
      engine: "auto", or the name of an engine, which is then used whatever it costs.

    Returns:
      `KEPT` or `MOMENTS`.

    Raises:
      Refusal: 2 for an unknown engine, or if neither fits.
    """
    names = (KEPT, MOMENTS)
    if engine not in ("auto", *names):
        raise Refusal(BAD_CONFIG, f"engine is {engine!r}; give one of auto, {', '.join(names)}")
    room = MEMORY_SHARE * (memory_per_device() if memory is None else memory)
    cost_of = {KEPT: costs.kept, MOMENTS: costs.moments}
    fits = {name: cost.bytes <= room for name, cost in cost_of.items()}
    figures = ", ".join(
        f"{name} {_format_bytes(cost.bytes)} per device and {cost.flops:.1e} operations"
        for name, cost in cost_of.items()
    )
    if engine != "auto":
        choice, reason = engine, "as configured"
    elif not any(fits.values()):
        raise Refusal(
            BAD_CONFIG,
            f"neither engine of similarities fits into {_format_bytes(room)} per device ({figures}); "
            "use more devices, or compare fewer models at once",
        )
    elif not fits[KEPT]:
        choice, reason = MOMENTS, f"kept rows do not fit into {_format_bytes(room)}; no intervals and p-values"
    elif costs.pool == "all" and fits[MOMENTS] and costs.moments.flops < costs.kept.flops:
        choice, reason = MOMENTS, "fewer operations when every token is a row; no intervals and p-values"
    else:
        choice, reason = KEPT, "with intervals and p-values"
    log.debug("similarities from %s: %s (%s)", choice, reason, figures)
    return choice


def _format_bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
