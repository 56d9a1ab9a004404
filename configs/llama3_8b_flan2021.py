"""The paper's experiment with Llama-3-8B, a base model of the next generation.

A TPU slice of 16 v6e chips:
    launch/tpu_pod.sh flan8b us-east5-b v6e-16 --spot --hf_token_file=$HOME/.cache/huggingface/token -- \
        python -m launch.run --config=configs/llama3_8b_flan2021.py --workdir=gs://BUCKET/flan8b --processes=0

A node of eight H100 (or H200) under Slurm:
    sbatch --nodes=1 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/llama3_8b_flan2021.py --workdir=/shared/flan8b --processes=0

Before either, plan the run and look at the data:
    python -m launch.plan --config=configs/llama3_8b_flan2021.py --topology=v6e:4x4,h100:8
    python -m launch.tasks --config=configs/llama3_8b_flan2021.py --out=runs/flan8b-look

The paper has no Llama 3; the settings are those of configs/llama2_7b_flan2021.py, except for the template: Llama-2's
means nothing to this base, which has none of its own.
The four rows of a step of E and the four slots of the controls have a group of chips each; heads are spread over the
chips of a group: two of eight, four of sixteen.

Three of the tasks (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to leave them out:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Config
from mossa_jax.presets import flan2021


def get_config() -> Config:
    """No template, so that a packed row holds four to eight examples."""
    config = flan2021("llama3_8b_flan2021", "meta-llama/Meta-Llama-3-8B")
    config.tokens.template = "none"
    return config
