"""The memory of a stream does not grow with its rows."""

import os
import subprocess
import sys

from tests.support.paths import ROOT

MEMORY = """
import resource
import jax, numpy as np
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.values import similarities_of

state = moments.start_stream(np.zeros((2, 64)), [(0, 1)])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rng, rows, valid = np.random.default_rng(0), 0, np.ones(1000, bool)
while rows < 10**6:
    state = jax.block_until_ready(moments.update(state, rng.normal(size=(2, 1000, 64)).astype(np.float32), valid))
    rows += 1000
    if rows == 1000:
        similarities_of(jax.tree.map(lambda leaf: leaf[None], state))
        first = peak()
print(peak() - first, similarities_of(jax.tree.map(lambda leaf: leaf[None], state)).n)
"""


def test_memory_is_the_same_for_a_thousand_and_a_million_rows():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth, rows = done.stdout.split()
    # A million rows of two models would take 488 MiB.
    assert float(growth) < 32 and int(rows) == 10**6
