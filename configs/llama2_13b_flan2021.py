"""The paper's experiment with Llama-2-13B: is the transition at the same relative depth in a larger model?

A TPU slice of 16 v5p chips (v5p-32 counts cores):
    launch/tpu_pod.sh flan13b us-east5-a v5p-32 --spot --hf_token_file=$HOME/.cache/huggingface/token -- \
        python -m launch.run --config=configs/llama2_13b_flan2021.py --workdir=gs://BUCKET/flan13b --processes=0

A node of eight H100 (or H200) under Slurm:
    sbatch --nodes=1 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/llama2_13b_flan2021.py --workdir=/shared/flan13b --processes=0

Before either, plan the run and look at the data:
    python -m launch.plan --config=configs/llama2_13b_flan2021.py --topology=v5p:2x2x4,h100:8
    python -m launch.tasks --config=configs/llama2_13b_flan2021.py --out=runs/flan13b-look

The paper has no 13B; the settings are those of configs/llama2_7b_flan2021.py. E's rows and
the slots of the controls have a group of chips each, as there.

Three of the tasks (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to leave them out:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Config
from mossa_jax.presets import flan2021


def get_config() -> Config:
    """Fewer rows per forward pass of the comparison."""
    config = flan2021("llama2_13b_flan2021", "meta-llama/Llama-2-13b-hf")
    config.compare.batch_rows = 16
    return config
