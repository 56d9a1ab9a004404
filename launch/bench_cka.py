"""Measures CKA beside the tools and procedures in common use; whoever of them is installed takes part.

python -m launch.bench_cka [--parts=states,traps,models,prefix,overhead] [--preset=110m] [--devices=1,2] [--out=F.json]
"""

import json
import pathlib
from typing import Any

from absl import flags

from launch.main import run
from mossa_jax.benchmarks import comparison_overhead as overhead
from mossa_jax.benchmarks import end_to_end, machine
from mossa_jax.benchmarks import numerical_traps as traps
from mossa_jax.benchmarks import ready_states as ready
from mossa_jax.benchmarks import shared_prefix as prefix
from mossa_jax.benchmarks.random_models import PRESETS as MODEL_PRESETS
from mossa_jax.benchmarks.random_models import Workload as ModelWorkload
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.write import write_json

_PARTS = ("states", "traps", "models", "prefix", "overhead")
PARTS = flags.DEFINE_list("parts", ",".join(_PARTS), f"Which of {', '.join(_PARTS)}.")
OUT = flags.DEFINE_string("out", None, "File for the JSON record; without it the record is printed as one line.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds; medians are reported.")
SEED = flags.DEFINE_integer("seed", 0, "Of states, weights and prompts.")
N = flags.DEFINE_integer("n", 2048, "states: rows.")
D = flags.DEFINE_integer("d", 1024, "states: width.")
LAYERS = flags.DEFINE_integer("layers", None, "Layers of each model; default: 12 of states, 6 of models.")
OFFSET = flags.DEFINE_float("offset", 0.0, "states: common offset, in units of the noise.")
BATCH = flags.DEFINE_integer("batch", 256, "states: rows a batch, for tools that average over batches.")
MEMORY = flags.DEFINE_bool("memory", True, "states: extra peak memory, each contestant in a process of its own.")
PRESET = flags.DEFINE_enum("preset", None, sorted(MODEL_PRESETS), "models, prefix, overhead: sizes by name.")
HIDDEN = flags.DEFINE_integer("hidden", None, "models, prefix, overhead: width; default 256.")
HEADS = flags.DEFINE_integer("heads", None, "models, prefix, overhead: heads; default 4.")
VOCAB = flags.DEFINE_integer("vocab", None, "models, prefix, overhead: vocabulary; default 1,024.")
PROMPTS = flags.DEFINE_integer("prompts", None, "models, prefix, overhead: prompts (a device); default 512.")
TOKENS = flags.DEFINE_integer("tokens", None, "models, overhead: mean length of a prompt; default 64.")
BATCH_ROWS = flags.DEFINE_integer("batch_rows", None, "models, prefix, overhead: packed rows a forward pass of ours.")
POOLS = flags.DEFINE_list("pools", ",".join(overhead.POOLS), "overhead: poolings.")
DEVICES = flags.DEFINE_list("devices", "1", "overhead: numbers of devices; on a CPU virtual ones.")


def _states() -> ready.Workload:
    return ready.Workload(
        n=N.value, d=D.value, layers=12 if LAYERS.value is None else LAYERS.value, rounds=ROUNDS.value,
        offset=OFFSET.value, seed=SEED.value, batch=BATCH.value, memory=MEMORY.value,
    )  # fmt: skip


def _models() -> ModelWorkload:
    sizes = (HIDDEN, LAYERS, HEADS, VOCAB, PROMPTS, TOKENS, BATCH_ROWS)
    given = {flag.name: flag.value for flag in sizes if flag.value is not None}
    preset = MODEL_PRESETS[PRESET.value] if PRESET.value else {}
    return ModelWorkload(**(preset | given), rounds=ROUNDS.value, seed=SEED.value)


def _devices() -> list[int]:
    try:
        return [int(count) for count in DEVICES.value]
    except ValueError:
        raise Refusal(BAD_CONFIG, f"--devices={','.join(DEVICES.value)}: give whole numbers, as 1,2") from None


def main() -> None:
    """Measures, prints the tables, writes or prints the record."""
    strange = sorted(set(PARTS.value) - set(_PARTS))
    if strange or not PARTS.value:
        raise Refusal(BAD_CONFIG, f"--parts={','.join(PARTS.value)}: give some of {', '.join(_PARTS)}")
    if OUT.value and not pathlib.Path(OUT.value).absolute().parent.is_dir():
        raise Refusal(BAD_CONFIG, f"--out={OUT.value}: its folder does not exist; create it first")
    states, sizes, devices = _states(), _models(), _devices()
    states.check()
    sizes.check()
    record: dict[str, Any] = machine.environment()
    machine.set_threads()
    record["gflop_per_s_peak"] = machine.matmul_peak()
    peak = record["gflop_per_s_peak"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    print(
        f"{record['devices']} x {record['device']}, {record['cores']} cores, load before {record['load_before']}; "
        f"matrix products {peak['best']:.0f} GFLOP/s\n{versions}"
    )
    steps = {
        "states": (lambda: ready.measure(states, peak["best"]), ready.table),
        "traps": (lambda: traps.measure(SEED.value), traps.table),
        "models": (lambda: end_to_end.measure(sizes), end_to_end.table),
        "prefix": (lambda: prefix.measure(sizes), prefix.table),
        "overhead": (lambda: overhead.measure(sizes, devices, POOLS.value), overhead.table),
    }
    for part in (part for part in _PARTS if part in PARTS.value):
        measure, table = steps[part]
        record[part] = measure()
        print(f"\n{table(record[part])}", flush=True)
        if OUT.value:  # part by part: a long measurement that is stopped leaves what it has
            write_json(OUT.value, record)
    if not OUT.value:
        print(json.dumps(record))


if __name__ == "__main__":
    run(main)
