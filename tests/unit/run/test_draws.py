"""The draw of specialists of other clusters is that of the published rule, however its ranks are computed."""

import hashlib
import json
import types

from mossa_jax.run.lineup import draw_mismatched


def test_a_draw_takes_the_least_digests_of_seed_task_and_other():
    tasks = [types.SimpleNamespace(name=f't日"{n}', cluster=f"c{n % 7}") for n in range(30)]
    config = types.SimpleNamespace(seed=3, compare=types.SimpleNamespace(mismatched=3))
    run = types.SimpleNamespace(suite=types.SimpleNamespace(tasks=tasks, held_out=()), config=config)
    for task in tasks:
        others = [other.name for other in tasks if other.cluster != task.cluster]
        digests = {name: hashlib.sha256(json.dumps([3, task.name, name]).encode()).digest() for name in others}
        assert draw_mismatched(run, task) == sorted(others, key=digests.__getitem__)[:3]
