"""Run by test_fingerprint.py in processes of their own: the digest of a model's weights on several meshes.

Arguments: model folder, number type, meshes as "adapter,fsdp,tensor ..." and, for several processes, their number, the
coordinator and this one's index. Prints a digest per mesh, and whether any program gathers a leaf.
"""

import json
import sys

import jax

folder, dtype, meshes, *processes = sys.argv[1:]
if processes:
    jax.distributed.initialize(processes[1], int(processes[0]), int(processes[2]))

from mossa_jax.config import Mesh  # noqa: E402
from mossa_jax.devices.mesh import make_mesh  # noqa: E402
from mossa_jax.llama import fingerprint  # noqa: E402
from mossa_jax.llama.files.load import load_model  # noqa: E402

digests, gathers = [], False
for sizes in meshes.split():
    model = load_model(folder, dtype, make_mesh(Mesh(*map(int, sizes.split(",")))))
    digests.append(fingerprint.weights_digest(model.state))
    for leaf in jax.tree.leaves(model.state):
        lowered = fingerprint._sums.lower(leaf, fingerprint._places(leaf.shape), leaf.sharding)
        gathers |= "all-gather" in lowered.compile().as_text()
print(json.dumps({"digests": digests, "gathers": gathers}))
