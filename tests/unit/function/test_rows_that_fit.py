"""How many prompts are answered at once follows from the memory of a device."""

import pytest
from jax.sharding import AbstractMesh

from mossa_jax.devices.mesh import AXES
from mossa_jax.function.answers import AnswerConfig, rows_that_fit
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.published import PUBLISHED

CONFIG = AnswerConfig(max_tokens=1024, new_tokens=16)


@pytest.mark.parametrize(
    ("sizes", "gib", "rows"),
    [
        ((1, 1, 1), 71, 16),  # one H100: 64 prompts would take 200 GiB
        ((1, 4, 2), 71, 64),
        ((1, 4, 4), 15.75, 64),  # sixteen TPUs v5e
        ((1, 1, 1), 1, 1),  # nothing fits; the compiler will say so
        ((1, 8, 1), 1, 8),  # never fewer than a row for each device
    ],
)
def test_rows_are_halved_until_the_caches_fit(sizes, gib, rows):
    arch = architecture_from_config(PUBLISHED["llama2-7b"], "llama2-7b")
    assert rows_that_fit(arch, AbstractMesh(sizes, AXES), 2, int(gib * 2**30), CONFIG) == rows
