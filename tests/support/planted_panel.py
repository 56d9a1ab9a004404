"""States of planted tasks, through the panel: one case that a single dimension carries, one that all measures show."""

import numpy as np
import pandas as pd

from mossa_jax.similarity.measures.panel import RAW, VARIANTS, measure_panel

ROWS, WIDTH, LAYERS, TASKS = 64, 24, 8, 8
SUBSET = (1, 2, 5, 6, 8)
PAIRS = ((0, 2), (1, 2), (1, 3))


def planted_states(kind, task):
    """[4, K, n, D] float32 of one task: the base, E, its control, a foreign control.

    `honest`: E holds more of the control than the base does, in all dimensions, from layer 3 on.
    `dominated`: E holds no more of it than the base, but for one dimension with nearly all variance.
    `replaced`: the same, and of all other dimensions E holds less than the base.
    """
    rng = np.random.default_rng([task, ("honest", "dominated", "replaced").index(kind)])
    shape = (len(SUBSET), ROWS, WIDTH)
    control, base_noise, tuned_noise, foreign = rng.normal(size=(4, *shape))
    # [K, 1, 1]: how much E gains at each layer, more in some tasks than in others
    gain = np.clip((np.array(SUBSET) - 2) / 4, 0, 1)[:, None, None] * rng.uniform(0.5, 1.0)
    held = 0.4
    base = held * control + base_noise
    if kind == "honest":
        tuned = (held + 2 * gain) * control + tuned_noise
    else:
        tuned = (held - (0.35 * (gain > 0) if kind == "replaced" else 0)) * control + tuned_noise
        massive = 40 * rng.normal(size=(3, len(SUBSET), ROWS))
        control[:, :, 0], base[:, :, 0] = massive[0], massive[1]
        # [K, n]: E shares the control's massive dimension where it gains, and has one of its own elsewhere.
        share = np.clip(gain[..., 0] * 1.5, 0, 1)
        tuned[:, :, 0] = share * massive[0] + np.sqrt(1 - share**2) * massive[2]
    return np.stack([base, tuned, control, foreign]).astype(np.float32)


def planted_measures(kind):
    """The table `results/measures` of the planted tasks, with raw states of the other pooling, and the CKA of d."""
    rows = []
    for task in range(TASKS):
        states, valid = planted_states(kind, task), np.ones(ROWS, bool)
        for pool, variants in (("last", VARIANTS), ("mean", (RAW,))):
            for cells in measure_panel(states, valid, PAIRS, variants):
                for p, label in enumerate((("pretrained", ""), ("tuned", ""), ("tuned", ".twin"))):
                    for k, layer in enumerate(SUBSET):
                        rows.append(
                            {
                                "task": f"t{task:02}",
                                "cluster": f"c{task:02}",
                                "held_out": False,
                                "experimental": label[0],
                                "control": f"t{task:02}{label[1]}",
                                "layer": str(layer),
                                "measure": cells.measure,
                                "variant": cells.variant,
                                "pool": pool,
                                "value": float(cells.value[p, k]),
                                "n": cells.n,
                                "undefined": cells.undefined[p, k],
                            }
                        )
    return pd.DataFrame(rows)


def planted_cka(measures):
    """A table `results/cka` whose cells are the panel's own CKA, layers in between by interpolation."""
    own = measures[(measures.variant == RAW) & (measures.pool == "last") & measures.measure.str.startswith("cka_")]
    parts = []
    keys = ["experimental", "control", "task", "cluster", "held_out", "measure"]
    for names, rows in own.groupby(keys):
        layers = np.arange(1, LAYERS + 1)
        values = np.interp(layers, rows.layer.astype(int), rows.value)
        part = pd.DataFrame(dict(zip(keys[:-1], names[:-1], strict=True)) | {"layer": layers.astype(str)})
        parts.append(part.assign(estimator=names[-1].removeprefix("cka_"), cka=values, n=ROWS, undefined=""))
    return pd.concat(parts, ignore_index=True)
