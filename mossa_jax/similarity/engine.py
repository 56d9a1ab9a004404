"""Which engine a comparison uses: kept rows or streamed moments; what either costs, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from mossa_jax.devices.memory import device_room, host_memory
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.log import log
from mossa_jax.similarity.gram import tile_size
from mossa_jax.similarity.streamed.moments import blocks, crossed, strips

KEPT, MOMENTS = "kept", "moments"
# Weights and the forward pass need the rest of a device.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Cost:
    """`bytes` that one device holds for the comparison, and floating-point operations of it on all devices together."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Estimate:
    """What both engines cost for the same comparison; `pool` says what a row is."""

    kept: Cost
    moments: Cost
    pool: str


def estimate(
    models: int, layers: int, rows: int, width: int, pairs: Sequence[tuple[int, int]], devices: int, pool: str
) -> Estimate:
    """Costs of same-layer CKA of pairs of models, without permutations.

    Args:
        models: M.
        layers: K, with the embedding and the final norm.
        rows: n, prompts; or tokens where `pool` is "all".
        width: D.
        pairs: of models.
        devices: over which rows (kept) or sums (moments) are spread.
        pool: of the states; "all" makes every token a row.
    """
    cross = len(crossed(pairs))
    # Kept rows: all layers spread, and one layer's centred rows whole on every device while its tiles are dealt.
    layer = models * rows * width
    tile = tile_size(rows)
    kept = Cost(
        bytes=4 * (-(-layers * layer // devices) + 2 * layer + models * tile**2),
        # Upper tiles of a Gram per model, diagonal tiles whole, and their products.
        flops=layers * (models * rows * (rows + tile) * width + (models + cross) * rows * (rows + tile)),
    )
    count, block = blocks(width)
    own = models * block**2 * count * (count + 1) // 2
    made = models * sum((stop - at) * (count * block - at) for at, stop in strips(width))
    across = cross * (count * block) ** 2
    moments = Cost(
        # The sums, and as much again for what rounding keeps out of them.
        bytes=4 * 2 * layers * -(-(own + across) // devices),
        flops=2 * layers * rows * (made + across),
    )
    return Estimate(kept, moments, pool)


def device_bytes() -> int:
    """Memory of a device of this process; where nothing is known of it, its share of the host's."""
    return int(device_room(jax.local_devices()[0]) or host_memory() // jax.local_device_count())


def choose(costs: Estimate, memory: int | None = None, engine: str = "auto") -> str:
    """The engine to use, with one line in the log.

    Kept rows give intervals and p-values, so they are taken wherever they fit; except for "all" tokens, where n^2 D
    operations are taken only if they are fewer than those of the moments.

    Args:
        costs: from `estimate`.
        memory: bytes of a device; default: what this one has.
        engine: "auto", or the name of an engine, which is then used whatever it costs.

    Raises:
        Refusal: code 2 for an unknown engine, or where neither fits.
    """
    names = (KEPT, MOMENTS)
    if engine not in ("auto", *names):
        raise Refusal(BAD_CONFIG, f"engine is {engine!r}; give one of auto, {', '.join(names)}")
    room = MEMORY_SHARE * (device_bytes() if memory is None else memory)
    fits = {name: getattr(costs, name).bytes <= room for name in names}
    figures = ", ".join(
        f"{name} {_size(getattr(costs, name).bytes)} a device and {getattr(costs, name).flops:.1e} operations"
        for name in names
    )
    if engine != "auto":
        chosen, why = engine, "as asked"
    elif not any(fits.values()):
        raise Refusal(
            BAD_CONFIG,
            f"neither engine of similarities fits into {_size(room)} a device ({figures}); "
            "use more devices, or compare fewer models at once",
        )
    elif not fits[KEPT]:
        chosen, why = MOMENTS, f"kept rows do not fit into {_size(room)}; no intervals and p-values"
    elif costs.pool == "all" and fits[MOMENTS] and costs.moments.flops < costs.kept.flops:
        chosen, why = MOMENTS, "fewer operations for every token a row; no intervals and p-values"
    else:
        chosen, why = KEPT, "with intervals and p-values"
    log.info("similarities from %s: %s (%s)", chosen, why, figures)
    return chosen


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
