"""Every engine on the states of a trained model, against float64."""

import numpy as np
import pytest

from tests.support.engines import ENGINES
from tests.support.traps import PAIRS, expected


@pytest.mark.parametrize("engine", ENGINES)
def test_real_states(engine, stories):
    import mossa_jax as mossa

    prompts = [
        f"{who} {did} the {thing} and {then}"
        for who in ("One day a boy", "The old cat", "Lily", "A big dog")
        for did in ("saw", "wanted", "lost")
        for thing in ("ball", "red hat", "little bird", "cake")
        for then in ("was happy", "ran home to mom")
    ]
    kept = mossa.layer_states(mossa.load_model(str(stories), dtype="float32"), prompts, pool="mean")
    for layer in (1, 3, -1):
        first, second = (np.asarray(list(kept.values())[k]) for k in (0, layer))
        states = np.stack([first, second, 2 * first - second])
        found = ENGINES[engine](states, np.ones(len(prompts), bool))
        exact = expected(states)
        assert found.value == pytest.approx(np.array([exact[pair] for pair in PAIRS]), abs=1e-5)
