"""The paper's experiment on unseen tasks: E never sees the seven of FLAN's Misc., which have their own controls.

A TPU slice of 16 v5e chips:
    launch/tpu_pod.sh unseen7b us-west4-a v5litepod-16 --spot --hf_token_file=$HOME/.cache/huggingface/token -- \
        python -m launch.run --config=configs/llama2_7b_unseen.py --workdir=gs://BUCKET/unseen7b --processes=0

A node of eight H100 (or H200) under Slurm:
    sbatch --nodes=1 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/llama2_7b_unseen.py --workdir=/shared/unseen7b --processes=0

Before either, plan the run and look at the data:
    python -m launch.plan --config=configs/llama2_7b_unseen.py --topology=v5e:4x4,h100:8
    python -m launch.tasks --config=configs/llama2_7b_unseen.py --out=runs/unseen7b-look

That these are the authors' seven tasks is our reading (mossa_jax/tasks/flan_names.py). E learns from the 60 other
tasks, so this run contains all of configs/llama2_7b_flan2021.py, plus seven unseen tasks with their controls.
The four rows of a step of E and the four slots of the controls have a group of chips each; heads are spread over the
chips of a group: two of eight, four of sixteen.

Three of the tasks (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to leave them out:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Config
from mossa_jax.presets import flan2021


def get_config() -> Config:
    """Every cluster, Misc. included."""
    config = flan2021("llama2_7b_unseen", "meta-llama/Llama-2-7b-hf")
    config.tasks.only = ()
    return config
