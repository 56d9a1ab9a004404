"""The paper's experiment with Llama-2-13B: does the transition stand at the same share of the depth in a larger model?

A TPU slice of 16 v5p chips (v5p-32 counts cores):
    launch/tpu_pod.sh flan13b us-east5-a v5p-32 --spot --hf_token_file=$HOME/.cache/huggingface/token -- \
        python -m launch.run --config=configs/llama2_13b_flan2021.py --workdir=gs://BUCKET/flan13b --processes=0

A node of eight H100 (or H200) under Slurm:
    sbatch --nodes=1 launch/slurm.sbatch -- \
        python -m launch.run --config=configs/llama2_13b_flan2021.py --workdir=/shared/flan13b --processes=0

Before either, what it takes and what the data look like:
    python -m launch.plan --config=configs/llama2_13b_flan2021.py --topology=v5p:2x2x4,h100:8
    python -m launch.tasks --config=configs/llama2_13b_flan2021.py --out=runs/flan13b-look

The paper has no 13B: settings are those of configs/llama2_7b_flan2021.py. Each row's heads are spread over four
chips, E's rows and the controls over what is left.

Three of the names (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to go without them:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning
from mossa_jax.tasks.flan_names import CLUSTERS


def get_config() -> Config:
    """Settings as in the authors' runs, but for bfloat16, packed rows and cutting that keeps a prompt's end."""
    return Config(
        name="llama2_13b_flan2021",
        base="meta-llama/Llama-2-13b-hf",
        dtype="bfloat16",
        tasks=Tasks(
            suite="flan2021",
            selection="paper",
            sources=("Muennighoff/flan", "DataProvenanceInitiative/flan2021_submix_original"),
            only=CLUSTERS,
        ),
        tokens=Tokens(template="llama2", max_tokens=1024, row_length=1024),
        tuning=Tuning(
            rank=8,
            alpha=16.0,
            targets=("q_proj", "v_proj"),
            # A packed row holds four to five examples: four rows are about the authors' sixteen examples a step.
            control=Schedule(epochs=3, batch_rows=4, parts=2, learning_rate=5e-5),
            experimental=Schedule(epochs=3, batch_rows=4, learning_rate=5e-5),
            slots=4,
        ),
        compare=Compare(batch_rows=16),
        mesh=Mesh(adapter=-1, fsdp=1, tensor=4),
    )
