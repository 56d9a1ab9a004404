"""The whole trap table on eight devices; test_traps.py runs it in processes of its own.

With several processes the arguments are their number, the coordinator's address and this one's index.
"""

import sys

import jax
import numpy as np

if sys.argv[1:]:
    jax.distributed.initialize(sys.argv[2], int(sys.argv[1]), int(sys.argv[3]))

from tests.support.engines import ENGINES, spread
from tests.support.traps import PAIRS, benign, expected, table, undefined_table

for engine, run in ENGINES.items():
    for name, (states, tolerance) in table().items():
        found = run(*spread(states))
        exact = expected(states)
        for i, pair in enumerate(PAIRS):
            assert list(found.undefined[i]) == ["", ""], (engine, name, found.undefined[i])
            assert np.abs(found.value[i] - exact[pair]).max() < tolerance, (engine, name)
    for name, (states, said) in undefined_table().items():
        assert list(run(*spread(states)).undefined[0]) == said, (engine, name)
    states = benign()
    states[0, 7, 3] = np.nan
    found = run(*spread(states))
    assert (found.n, found.dropped) == (39, 1), engine
    exact = expected(np.delete(states, 7, 1))
    assert np.abs(found.value - [exact[pair] for pair in PAIRS]).max() < 1e-6, engine
print(jax.process_count(), jax.device_count(), "right")
