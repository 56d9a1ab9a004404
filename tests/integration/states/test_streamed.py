"""Similarity of states that are never kept, against torch states and a float64 CKA."""

import numpy as np
import pytest

from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states import PassConfig
from mossa_jax.tokens.packing import Packing
from tests.support.float64_cka import ESTIMATORS
from tests.support.tiny_llama import NAMES, random_prompts, torch_states

LEAD = random_prompts(1, seed=9, shortest=30, longest=30)[0]
POOLING = {"last": lambda layer: layer[-1:], "mean": lambda layer: layer.mean(0)[None], "all": lambda layer: layer}


_QUICK = [(False, "all")]


@pytest.mark.parametrize(
    ("prefix", "pool"),
    [
        pytest.param(prefix, pool, marks=[] if (prefix, pool) in _QUICK else pytest.mark.slow)
        for prefix in (False, True)
        for pool in POOLING
    ],
)
def test_every_layer_equals_torch_and_float64(tiny, tiny_adapters, pool, prefix):
    count = 30 if pool == "all" else 90
    prompts = [[*LEAD, *own[1:]] if prefix else own for own in random_prompts(count, longest=20)]
    model = load_model(str(tiny.folder))
    (path, reference), (other, other_reference) = tiny_adapters
    arch = model.architecture
    adapters = stack(arch, [{}, load_adapter(path, arch), load_adapter(other, arch)])
    pairs = [(0, 2), (1, 2), (0, 1)]
    config = PassConfig(pool, 4, Packing(64))
    found = stream_similarities(model, adapters, prompts, config, pairs)
    rows = []
    for torch_model in (tiny.torch_model, reference, other_reference):
        states = torch_states(torch_model, prompts)
        rows.append({name: np.concatenate([POOLING[pool](prompt[name]) for prompt in states]) for name in NAMES})
    assert found.n == len(rows[0][NAMES[0]]) and found.dropped == 0
    checked = 0
    for index, (a, b) in enumerate(pairs):
        for layer, name in enumerate(NAMES):
            for e, estimator in enumerate(("biased", "debiased")):
                assert np.isnan([found.low[index, layer, e], found.p[index, layer, e]]).all()
                if not found.undefined[index, layer, e]:
                    wanted = ESTIMATORS[estimator](rows[a][name], rows[b][name])
                    assert found.value[index, layer, e] == pytest.approx(wanted, abs=1e-4), (name, estimator)
                    checked += 1
    assert checked == 2 * len(pairs) * len(NAMES)
