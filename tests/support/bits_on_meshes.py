"""Run by test_reproducible.py in processes of their own: what a reproducible population learns, on several meshes.

Arguments: model folder, meshes as "adapter,fsdp,tensor ..." and, for several processes, their number, the coordinator
and this one's index. Six models learn for eight steps of four rows on each mesh. Prints as JSON, for each mesh, a
digest of all adapters, moments and losses and, on one device, how far from them the plain step ends.
"""

import hashlib
import json
import sys

import jax
import numpy as np

folder, meshes, *processes = sys.argv[1:]
if processes:
    jax.distributed.initialize(processes[1], int(processes[0]), int(processes[2]))

from mossa_jax.config import Mesh, Schedule, Tuning  # noqa: E402
from mossa_jax.devices.mesh import make_mesh, place, replicated  # noqa: E402
from mossa_jax.llama import adapters  # noqa: E402
from mossa_jax.llama.files.load import load_model  # noqa: E402
from mossa_jax.tokens.encoded import Encoded, in_memory  # noqa: E402
from mossa_jax.tokens.rows import pack_examples  # noqa: E402
from mossa_jax.tuning import population  # noqa: E402
from mossa_jax.tuning.batch import place_batch  # noqa: E402

MODELS, ROWS, STEPS = 6, 4, 8
TARGETS = ("q_proj", "down_proj")


def rows_of(number: int):
    rng = np.random.default_rng(number)
    draw = lambda size: rng.integers(4, 60, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(rng.integers(4, 14))], [*draw(3), 2]) for _ in range(40)]
    return pack_examples(in_memory(examples), 32)[0]


def learn(mesh, reproducible: bool):
    """Returns (state, losses) after all steps, whole on every device."""
    model = load_model(folder, mesh=mesh)
    arch = model.architecture
    stacked = adapters.stack(arch, [adapters.initial_adapter(arch, TARGETS, 4, 8.0, 0, (n,)) for n in range(MODELS)])
    optimizer = population.optimizer_for(Tuning(), Schedule(learning_rate=2e-2))
    state = population.initial_state(adapters.matrices(stacked), optimizer, mesh)
    scale = {t: place(mesh, leaf, adapters.AXES["scale"]) for t, leaf in adapters.scales(stacked).items()}
    total = place(mesh, np.full(MODELS, STEPS, np.int32), ("adapter",))
    active = place(mesh, np.ones(MODELS, bool), ("adapter",))
    packed = [rows_of(number) for number in range(MODELS)]
    width = max(part.width for part in packed)
    spec = population.StepSpec(arch, optimizer, mesh, False, max_own=16, reproducible=reproducible)
    step = population.make_step(spec)
    losses = []
    for number in range(STEPS):
        chosen = np.random.default_rng(number).permutation(min(map(len, packed)))[:ROWS]
        parts = [part.take(chosen, width) for part in packed]
        batch = type(parts[0])(*(np.stack([getattr(p, f) for p in parts]) for f in vars(parts[0])))
        state, metrics = step(model.state, scale, total, state, place_batch(mesh, batch), active)
        losses.append(metrics["loss"])
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))((state, losses))
    return jax.tree.map(np.asarray, whole)


results = {}
for sizes in meshes.split():
    mesh = make_mesh(Mesh(*map(int, sizes.split(","))))
    whole = learn(mesh, True)
    assert whole[1][-1].mean() < whole[1][0].mean() - 0.05  # they learn, so results could differ
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(whole))).hexdigest()
    results[sizes] = {"digest": digest}
    if mesh.size == 1:
        plain = learn(mesh, False)
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), whole[0].adapters, plain[0].adapters)
        results[sizes]["gap"] = max(jax.tree.leaves(gaps))
print(json.dumps(results))
