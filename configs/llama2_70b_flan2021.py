"""The paper's experiment with Llama-2-70B.

A TPU slice of 64 v5p chips (v5p-128 counts cores):
    launch/tpu_pod.sh flan70b us-east5-a v5p-128 --spot --hf_token_file=$HOME/.cache/huggingface/token -- \
        python -m launch.run --config=configs/llama2_70b_flan2021.py --workdir=gs://BUCKET/flan70b --processes=0

Four nodes of eight H100 (or H200) under Slurm:
    sbatch --nodes=4 --time=48:00:00 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/llama2_70b_flan2021.py --workdir=/shared/flan70b --processes=0

Before either, plan the run and look at the data:
    python -m launch.plan --config=configs/llama2_70b_flan2021.py --topology=v5p:4x4x4,h100:8x4
    python -m launch.tasks --config=configs/llama2_70b_flan2021.py --out=runs/flan70b-look

The paper has no 70B; the settings are those of configs/llama2_7b_flan2021.py, except that E takes 16 packed rows per
step, and so a quarter of the updates: four rows would leave most of the chips idle. Heads are spread over eight chips,
E's rows and the controls over the rest.

Three of the tasks (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to leave them out:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Config
from mossa_jax.presets import flan2021


def get_config() -> Config:
    """More rows per step of E, fewer per forward pass; heads over eight chips, a slot per group of chips."""
    config = flan2021("llama2_70b_flan2021", "meta-llama/Llama-2-70b-hf")
    config.tuning.experimental.batch_rows = 16
    config.tuning.slots = 8
    config.compare.batch_rows = 16
    config.mesh.adapter, config.mesh.tensor = -1, 8
    return config
