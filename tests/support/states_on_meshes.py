"""Run by test_meshes.py in processes of their own: states on several meshes, against those of prompts alone.

Arguments: model folder, file of texts (JSON), file of the wanted states (.npz), meshes as "fsdp,tensor ...", and for
several processes their number, the coordinator and this one's index. Prints the largest relative difference.
"""

import json
import sys

import jax
import numpy as np

folder, texts, wanted, meshes, *processes = sys.argv[1:]
if processes:
    jax.distributed.initialize(processes[1], int(processes[0]), int(processes[2]))

import mossa_jax as mossa  # noqa: E402
from mossa_jax.config import Mesh  # noqa: E402
from mossa_jax.devices.mesh import make_mesh  # noqa: E402

texts, wanted, largest = json.load(open(texts)), np.load(wanted), 0.0
for sizes in meshes.split():
    fsdp, tensor = map(int, sizes.split(","))
    model = mossa.load_model(folder, mesh=make_mesh(Mesh(1, fsdp, tensor)))
    for pool in ("last", "mean"):
        for name, states in mossa.layer_states(model, texts, pool=pool).items():
            alone = wanted[f"{pool} {name}"]
            difference = np.linalg.norm(states - alone, axis=1) / np.linalg.norm(alone, axis=1)
            largest = max(largest, float(difference.max()))
print("largest", largest)
