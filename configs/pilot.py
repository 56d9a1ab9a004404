"""A pilot on one chip: a real model of 135 million parameters and eight tasks, before a large run is paid for.

A v5e chip of Cloud TPU (launch/README.md has the whole recipe):
    launch/tpu_pod.sh pilot us-west4-a v5litepod-1 --max_hours=2 --max_cost=1 -- \
        python -m launch.run --config=configs/pilot.py --workdir=gs://BUCKET/pilot --processes=0

A GPU under Slurm:
    sbatch --nodes=1 --gpus-per-node=1 --ntasks-per-node=1 --time=1:00:00 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/pilot.py --workdir=runs/pilot

Before it, plan it; after it, plan the large run from what it measured:
    python -m launch.plan --config=configs/pilot.py --topology=v5e:1x1 --nocompile
    python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4 --measured=gs://BUCKET/pilot

Batches, template, rank and number type are those of the large run, so that its programs are the same but for the model.
"""

from dataclasses import replace

from mossa_jax.config import Config, Mesh, Schedule
from mossa_jax.presets import flan2021


def get_config() -> Config:
    """Two tasks of each of four clusters, a pass over at most 4,000 rows of each, 256 test prompts."""
    config = flan2021("pilot", "HuggingFaceTB/SmolLM2-135M-Instruct")
    tasks = ("rte", "anli_r1", "bool_q", "openbookqa", "sst2", "imdb_reviews", "glue_mrpc", "paws_wiki")
    return replace(
        config,
        tasks=replace(config.tasks, sources=("Muennighoff/flan",), only=tasks, max_train=4000, max_test=256),
        tuning=replace(
            config.tuning,
            control=Schedule(epochs=1, batch_rows=4, parts=2, learning_rate=2e-4),
            experimental=Schedule(epochs=1, batch_rows=4, learning_rate=2e-4),
            score_prompts=64,
        ),
        mesh=Mesh(adapter=-1, fsdp=1, tensor=1),
    )
