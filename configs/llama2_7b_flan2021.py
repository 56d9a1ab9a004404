"""The paper's experiment: Llama-2-7B, FLAN 2021, a control model per task, E on the mixture (Zhao, Ziser, Cohen, 2024).

A TPU slice of 16 v5e chips:
    launch/tpu_pod.sh flan7b us-west4-a v5litepod-16 --spot --hf_token_file=$HOME/.cache/huggingface/token -- \
        python -m launch.run --config=configs/llama2_7b_flan2021.py --workdir=gs://BUCKET/flan7b --processes=0

A node of eight H100 (or H200) under Slurm:
    sbatch --nodes=1 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/llama2_7b_flan2021.py --workdir=/shared/flan7b --processes=0

Before either, plan the run and look at the data:
    python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4,h100:8
    python -m launch.tasks --config=configs/llama2_7b_flan2021.py --out=runs/flan7b-look

These are the 60 tasks of FLAN's eleven clusters without Misc.; configs/llama2_7b_unseen.py adds the seven of Misc.
The four rows of a step of E and the four slots of the controls have a group of chips each; heads are spread over the
chips of a group: two of eight, four of sixteen.

Three of the tasks (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to leave them out:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Config
from mossa_jax.presets import flan2021


def get_config() -> Config:
    """The paper's own base and tasks."""
    return flan2021("llama2_7b_flan2021", "meta-llama/Llama-2-7b-hf")
