"""Measures loading a checkpoint: seconds, read rate against a plain sequential read, and peak host memory.

python -m launch.bench_load --base=FOLDER [--dtype=bfloat16] [--fsdp=-1]

With several processes (--processes, --coordinator, --process) each prints its own line. Pages of the files are
dropped from the system's cache before each reading, where the system allows it.
"""

import json
import mmap
import os
import resource
import time

import jax
from absl import flags

from launch.main import run
from mossa_jax.config import Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.tensors import TensorReader
from mossa_jax.llama.files.weights import load_weights
from mossa_jax.processes import agreement

BASE = flags.DEFINE_string("base", None, "Hugging Face folder.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Number type in memory.")
FSDP = flags.DEFINE_integer("fsdp", -1, "Devices on the fsdp axis; -1: all.")
SEQUENTIAL = flags.DEFINE_bool("sequential", True, "Also read the files once from end to end.")
CHUNK = 16 * 2**20


def _forget(paths) -> None:
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sequential(paths) -> float:
    start, buffer = time.monotonic(), bytearray(CHUNK)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.monotonic() - start


def _fresh_memory(size: int = 2**30) -> float:
    """Bytes a second at which new memory can be filled: no load can be faster."""
    start, block = time.monotonic(), bytes(CHUNK)
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, CHUNK):
            memory[offset : offset + CHUNK] = block
    return size / (time.monotonic() - start)


def main() -> None:
    """Prints one JSON object."""
    paths = sorted({stored.path for stored in TensorReader(BASE.value).tensors.values()})
    mesh = mesh_lib.make_mesh(Mesh(1, FSDP.value, 1))
    architecture = read_architecture(BASE.value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _forget(paths)
    start = time.monotonic()
    state = load_weights(BASE.value, architecture, mesh, DTYPE.value)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    here = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    found = {
        "model_bytes": size,
        "bytes_here": here,
        "process": f"{jax.process_index()} of {jax.process_count()}",
        "seconds": round(seconds, 2),
        "read_GB_per_s": round(here / seconds / 1e9, 3),
        "peak_host_bytes": peak,
        "peak_over_model": round(peak / size, 3),
        "peak_before_loading": before,
    }
    agreement.wait_for_all("loaded")
    if SEQUENTIAL.value:
        _forget(paths)
        sequential = _sequential(paths)
        stored = sum(os.path.getsize(path) for path in paths)
        found["sequential_read_GB_per_s"] = round(stored / sequential / 1e9, 3)
        found["rate_over_sequential"] = round((here / seconds) / (stored / sequential), 3)
    found["fresh_memory_GB_per_s"] = round(_fresh_memory() / 1e9, 3)
    print(json.dumps(found))


if __name__ == "__main__":
    run(main)
