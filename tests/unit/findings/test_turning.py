"""Whether the base's turns foretell where E departs: planted links are found, and shared trends are none."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from mossa_jax.findings.turning import find_turning

LAYERS, CLUSTERS = 12, 8


def table(link=1.0, seed=0, trend=0.0):
    """Two tasks a cluster; the blocks where the base turns are where E departs, as far as `link` goes."""
    rng = np.random.default_rng(seed)
    turns = rng.permutation(LAYERS) / LAYERS
    rows = []
    for task in range(2 * CLUSTERS + 1):
        novelty = turns + trend * np.arange(LAYERS) + rng.normal(0, 0.02, LAYERS)
        step = link * turns + trend * np.arange(LAYERS) + rng.normal(0, 0.02 if link else 0.3, LAYERS)
        for block in range(LAYERS):
            for estimator, shift in (("debiased", 0), ("biased", 0.01)):
                rows.append(
                    {
                        "task": f"t{task:02}", "cluster": f"c{task // 2}", "held_out": task == 2 * CLUSTERS,
                        "layer": str(block + 1), "estimator": estimator, "novelty": novelty[block] + shift,
                        "turning": novelty[block] + shift, "departure": 0.5, "departure_step": step[block],
                        "change": 0.1, "change_step": -step[block],
                    }
                )  # fmt: skip
    return pd.DataFrame(rows), turns


def test_a_planted_link_is_found_over_clusters():
    rows, turns = table()
    found = find_turning(rows, ["t00"])
    assert found["layers"] == [str(layer + 1) for layer in range(LAYERS)]
    assert found["turns_at"] == str(np.argmax(turns) + 1)
    assert (found["n_units"], found["n_tasks"], found["agree"]) == (CLUSTERS, 2 * CLUSTERS - 1, CLUSTERS)
    assert found["turning"] == pytest.approx(turns.max(), abs=0.02)
    for outcome in ("departure_step", "change_step"):
        link = found["links"]["novelty"][outcome]["plain"]
        # The size of a step counts, not its sign.
        assert link["mean"] > 0.9 and link["p"] == 2 ** (1 - CLUSTERS) and link["n_units"] == CLUSTERS


def test_the_correlations_are_scipys_averaged_over_clusters():
    rows, _ = table(link=0.0)
    found = find_turning(rows, [])["links"]["novelty"]["departure_step"]["plain"]
    own = rows[(rows.estimator == "debiased") & ~rows.held_out]
    values = {
        task: scipy.stats.spearmanr(each.novelty, each.departure_step).statistic for task, each in own.groupby("task")
    }
    expected = np.mean([np.mean([values[f"t{2 * c:02}"], values[f"t{2 * c + 1:02}"]]) for c in range(CLUSTERS)])
    assert found["mean"] == pytest.approx(expected, abs=1e-12)


def profile_of(turns):
    """Layer profiles in which each block carries what the base turns there, and blocks do not interact."""
    shares = np.append(0, np.cumsum(turns / turns.sum()))
    rows = []
    for task in range(2 * CLUSTERS + 1):
        for depth, share in enumerate(shares):
            row = {"task": f"t{task:02}", "model": "tuned", "share_of_gain": np.nan}
            rows.append({**row, "kept": "upto", "layer": depth, "share_of_information": share})
            rows.append({**row, "kept": "from", "layer": depth + 1, "share_of_information": 1 - share})
    return pd.DataFrame(rows)


def test_what_a_block_carries_of_the_gain_is_linked_where_there_are_profiles():
    rows, turns = table(link=0.0)
    links = find_turning(rows, ["t00"], profile=profile_of(turns))["links"]["novelty"]
    assert links["carried"]["plain"]["mean"] > 0.9 and links["carried"]["plain"]["n_units"] == CLUSTERS
    backwards = find_turning(rows, ["t00"], profile=profile_of(1 - turns))["links"]["novelty"]["carried"]["plain"]
    assert backwards["mean"] < -0.9
    assert "carried" not in find_turning(rows, ["t00"])["links"]["novelty"]


def test_a_trend_with_depth_is_no_link_beyond_depth():
    rows, _ = table(link=0.0, trend=0.2)
    links = find_turning(rows, [])["links"]["novelty"]["departure_step"]
    assert links["plain"]["mean"] > 0.6 and links["plain"]["p"] == 2 ** (1 - CLUSTERS)
    assert abs(links["beyond_depth"]["mean"]) < 0.25 and links["beyond_depth"]["p"] > 0.05


def test_without_competent_tasks_nothing_is_found():
    rows, _ = table()
    found = find_turning(rows, sorted(set(rows.task)))
    assert found["turns_at"] is None and found["n_tasks"] == 0
    assert found["links"]["novelty"]["departure_step"]["plain"]["n_units"] == 0
