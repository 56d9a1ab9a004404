"""Measures loading a checkpoint: seconds, read rate against a plain sequential read, and peak host memory.

python -m launch.bench_load --base=FOLDER [--dtype=bfloat16] [--fsdp=-1]

With several processes (--processes, --coordinator, --process) each prints its own line. Before each reading, the pages
of the files are dropped from the system's cache where the system allows it.
"""

import json
import mmap
import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from .flags import run
from .path_flags import define_path

BASE = define_path("base", "Hugging Face folder.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Number type in memory.")
FSDP = flags.DEFINE_integer("fsdp", -1, "Devices on the fsdp axis; -1: all.")
SEQUENTIAL = flags.DEFINE_bool("sequential", True, "Also read the files once from end to end.")
_CHUNK = 16 * 2**20


def _drop_from_cache(paths: Iterable[str | Path]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sequential_read(paths: Iterable[str | Path]) -> float:
    """Seconds that reading the files once from end to end takes."""
    start, buffer = time.monotonic(), bytearray(_CHUNK)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.monotonic() - start


def _fresh_memory(size: int = 2**30) -> float:
    """Bytes per second at which new memory can be filled: no load can be faster."""
    start, block = time.monotonic(), bytes(_CHUNK)
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, _CHUNK):
            memory[offset : offset + _CHUNK] = block
    return size / (time.monotonic() - start)


def main(_: object) -> None:
    """Prints one JSON object."""
    import jax

    from mossa_jax.config import Mesh
    from mossa_jax.devices.mesh import make_mesh
    from mossa_jax.llama.architecture import read_architecture
    from mossa_jax.llama.files.tensors import TensorReader
    from mossa_jax.llama.files.weights import load_weights
    from mossa_jax.processes import agreement

    paths = sorted({stored.path for stored in TensorReader(BASE.value).tensors.values()})
    mesh = make_mesh(Mesh(1, FSDP.value, 1))
    architecture = read_architecture(BASE.value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _drop_from_cache(paths)
    start = time.monotonic()
    state = load_weights(BASE.value, architecture, mesh, DTYPE.value)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    local = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    record = {
        "model_bytes": size,
        "bytes_here": local,
        "process": f"{jax.process_index()} of {jax.process_count()}",
        "seconds": round(seconds, 2),
        "read_GB_per_s": round(local / seconds / 1e9, 3),
        "peak_host_bytes": peak,
        "peak_over_model": round(peak / size, 3),
        "peak_before_loading": before,
    }
    agreement.wait_for_all("loaded")
    if SEQUENTIAL.value:
        _drop_from_cache(paths)
        sequential = _sequential_read(paths)
        stored = sum(os.path.getsize(path) for path in paths)
        record["sequential_read_GB_per_s"] = round(stored / sequential / 1e9, 3)
        record["rate_over_sequential"] = round((local / seconds) / (stored / sequential), 3)
    record["fresh_memory_GB_per_s"] = round(_fresh_memory() / 1e9, 3)
    print(json.dumps(record))


if __name__ == "__main__":
    run(main)
