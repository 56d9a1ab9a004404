"""Measures CKA side by side with the tools and procedures in common use that are installed.

python -m launch.bench_cka [--parts=states,traps,models,prefix,overhead,profile] [--preset=110m] [--shared=133]
    [--devices=1,2] [--out=FILE.json]
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from absl import flags

from mossa_jax.config import POOLS as CONFIG_POOLS
from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import require_choice, run
from .path_flags import define_path

if TYPE_CHECKING:
    from mossa_jax.benchmarks import random_models, ready_states

_PARTS = ("states", "traps", "models", "prefix", "overhead", "profile")
PARTS = flags.DEFINE_list("parts", ",".join(_PARTS), f"Any of {', '.join(_PARTS)}.")
OUT = define_path("out", "File for the JSON record; without it the record is printed as one line.", output="file")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds; medians are reported.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of states, weights and prompts.")
N = flags.DEFINE_integer("n", 2048, "states: rows.")
D = flags.DEFINE_integer("d", 1024, "states: width.")
LAYERS = flags.DEFINE_integer("layers", None, "Layers of each model; default: 12 for states, 6 for models.")
OFFSET = flags.DEFINE_float("offset", 0.0, "states: common offset, in units of the noise.")
BATCH = flags.DEFINE_integer("batch", 256, "states: rows per batch, for tools that average over batches.")
MEMORY = flags.DEFINE_bool("memory", True, "states: also measure extra peak memory, with each tool in its own process.")
PRESET = flags.DEFINE_string("preset", None, "models, prefix, overhead, profile: sizes by name, 110m or smollm2.")
HIDDEN = flags.DEFINE_integer("hidden", None, "models, prefix, overhead, profile: width; default 256.")
HEADS = flags.DEFINE_integer("heads", None, "models, prefix, overhead, profile: heads; default 4.")
KV_HEADS = flags.DEFINE_integer(
    "kv_heads", None, "models, prefix, overhead, profile: heads of keys and values; default 0, as many as heads."
)
FEED_FORWARD = flags.DEFINE_integer(
    "feed_forward", None, "models, prefix, overhead, profile: width of the feed-forward; default 0, 8/3 of the width."
)
VOCAB = flags.DEFINE_integer("vocab", None, "models, prefix, overhead, profile: vocabulary; default 1,024.")
PROMPTS = flags.DEFINE_integer(
    "prompts", None, "models, prefix, overhead, profile: prompts (overhead: per device); default 512."
)
SHARED = flags.DEFINE_integer(
    "shared",
    None,
    "models, overhead, profile: ids that all prompts begin with, BOS included, such as a chat template's (133 in "
    "Llama-2's with its system prompt); default 0.",
)
TOKENS = flags.DEFINE_integer(
    "tokens", None, "models, overhead, profile: mean number of a prompt's ids after the shared ones; default 64."
)
GENERATED = flags.DEFINE_integer(
    "generated",
    None,
    "models: prompts that the paper's procedure answers, once; their time is scaled up to all prompts. 0 leaves its "
    "generation out; default 2.",
)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", None, "models: tokens of each of these answers; default 512.")
LOOP_BATCH = flags.DEFINE_integer(
    "loop_batch", None, "models: prompts per batch of the loops over Hugging Face models; default 32."
)
BATCH_ROWS = flags.DEFINE_integer(
    "batch_rows", None, "models, prefix, overhead, profile: packed rows per forward pass of ours."
)
POOLS = flags.DEFINE_list("pools", ",".join(CONFIG_POOLS), "overhead: poolings.")
DEVICES = flags.DEFINE_list("devices", "1", "overhead: numbers of devices, virtual ones on a CPU.")


def _states_workload() -> ready_states.Workload:
    from mossa_jax.benchmarks import ready_states

    return ready_states.Workload(
        n=N.value,
        d=D.value,
        layers=12 if LAYERS.value is None else LAYERS.value,
        rounds=ROUNDS.value,
        offset=OFFSET.value,
        seed=SEED.value,
        batch=BATCH.value,
        memory=MEMORY.value,
    )


def _models_workload() -> random_models.Workload:
    from mossa_jax.benchmarks import random_models

    require_choice(PRESET, sorted(random_models.PRESETS))
    sizes = (
        HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, VOCAB, PROMPTS, SHARED, TOKENS, GENERATED, NEW_TOKENS,
        BATCH_ROWS,
    )  # fmt: skip
    overrides = {flag.name: flag.value for flag in sizes if flag.value is not None}
    if LOOP_BATCH.value is not None:
        overrides["batch"] = LOOP_BATCH.value
    preset = random_models.PRESETS[PRESET.value] if PRESET.value else {}
    return random_models.Workload(**(preset | overrides), rounds=ROUNDS.value, seed=SEED.value)


def _devices() -> list[int]:
    try:
        return [int(count) for count in DEVICES.value]
    except ValueError:
        raise Refusal(BAD_CONFIG, f"--devices={','.join(DEVICES.value)}: give whole numbers, as 1,2") from None


def main(_: object) -> None:
    """Measures, prints the tables, and writes or prints the record."""
    unknown = sorted(set(PARTS.value) - set(_PARTS))
    if unknown or not PARTS.value:
        raise Refusal(BAD_CONFIG, f"--parts={','.join(PARTS.value)}: give some of {', '.join(_PARTS)}")

    from mossa_jax.benchmarks import (
        comparison_overhead,
        end_to_end,
        layer_profiles,
        machine,
        numerical_traps,
        ready_states,
        shared_prefix,
    )
    from mossa_jax.files.write import write_json

    states, sizes, devices = _states_workload(), _models_workload(), _devices()
    states.check()
    sizes.check()
    if "models" in PARTS.value:
        sizes.check_generation()
    record: dict[str, Any] = machine.environment()
    machine.set_threads()
    record["gflop_per_s_peak"] = machine.matmul_peak()
    peak = record["gflop_per_s_peak"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    print(
        f"{record['devices']} x {record['device']}, {record['cores']} cores, load before {record['load_before']}; "
        f"matrix products {peak['best']:.0f} GFLOP/s\n{versions}"
    )
    parts = {
        "states": (lambda: ready_states.measure(states, peak["best"]), ready_states.table),
        "traps": (lambda: numerical_traps.measure(SEED.value), numerical_traps.table),
        "models": (lambda: end_to_end.measure(sizes), end_to_end.table),
        "prefix": (lambda: shared_prefix.measure(sizes), shared_prefix.table),
        "overhead": (lambda: comparison_overhead.measure(sizes, devices, POOLS.value), comparison_overhead.table),
        "profile": (lambda: layer_profiles.measure(sizes), layer_profiles.table),
    }
    for name, (measure, table) in parts.items():
        if name not in PARTS.value:
            continue
        record[name] = measure()
        print(f"\n{table(record[name])}", flush=True)
        if OUT.value:  # part by part: a long measurement that is stopped leaves what it has
            write_json(OUT.value, record)
    if not OUT.value:
        print(json.dumps(record))


if __name__ == "__main__":
    run(main)
