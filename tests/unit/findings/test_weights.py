"""Updates over layers: blocks join their projections, and own specialists are told from others."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.weights import find_weights

ANGLES = ("cosine", "overlap_in", "overlap_out")


def table(own=0.3, other=0.1, clusters=7):
    rng = np.random.default_rng(0)
    rows = []
    for task in range(clusters + 1):
        for layer in (1, 2, 3):
            for target, base in (("q_proj", 10.0), ("v_proj", 5.0)):
                row = {
                    "task": f"t{task}", "cluster": f"c{task}", "held_out": task == clusters, "layer": str(layer),
                    "target": target, "norm_tuned": 3.0 * layer, "norm_control": 1.0, "chance_in": 0.05,
                    "chance_out": 0.07,
                }  # fmt: skip
                row |= {f"relative_{name}": row[f"norm_{name}"] / base for name in ("tuned", "control")}
                for measure in ANGLES:
                    row |= {measure: own + rng.normal(0, 0.01), f"{measure}_other": other + rng.normal(0, 0.01)}
                    row[f"{measure}_seed"] = 0.8 if task < 2 else np.nan
                rows.append(row)
    return pd.DataFrame(rows)


def test_norms_of_a_block_add_up_as_squares():
    found = find_weights(table(), [])
    expected = np.sqrt(2 * (3.0 * np.arange(1, 4)) ** 2) / np.sqrt(10.0**2 + 5.0**2)
    assert found["relative"]["tuned"].mean == pytest.approx(expected)
    assert found["relative"]["control"].mean == pytest.approx([np.sqrt(2 / 125)] * 3)
    assert found["layers"] == ["1", "2", "3"] and found["n_tasks"] == 7


def test_a_block_without_an_update_of_e_has_the_base_norm_of_the_specialist():
    rows = table()
    rows.loc[rows.layer == "1", ["norm_tuned", "relative_tuned", *ANGLES]] = [0.0, 0.0, np.nan, np.nan, np.nan]
    found = find_weights(rows, [])
    assert found["relative"]["tuned"].mean[0] == 0
    assert found["relative"]["control"].mean[0] == pytest.approx(np.sqrt(2 / 125))
    assert np.isnan(found["cosine"]["own"].mean[0]) and np.isfinite(found["gain"]["cosine"]["mean"])


@pytest.mark.parametrize("measure", ANGLES)
def test_own_less_other_is_tested_over_clusters_of_competent_tasks(measure):
    found = find_weights(table(), ["t0"])
    gain = found["gain"][measure]
    assert gain["n_units"] == found["n_tasks"] == 6
    assert gain["low"] < 0.2 < gain["high"] and gain["p"] == pytest.approx(2**-5)
    assert found[measure]["own"].mean == pytest.approx([0.3] * 3, abs=0.02)
    # One task has two seeds: a mean, and no interval.
    assert found[measure]["seed"].mean == pytest.approx([0.8] * 3)
    assert np.isnan(found[measure]["seed"].low).all()
    assert find_weights(table(own=0.1), [])["gain"][measure]["p"] > 0.05


def test_chance_stands_beside_the_overlaps():
    found = find_weights(table(), [])
    assert found["overlap_in"]["chance"] == pytest.approx([0.05] * 3)
    assert found["overlap_out"]["chance"] == pytest.approx([0.07] * 3)
