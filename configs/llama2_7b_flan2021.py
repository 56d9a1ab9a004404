"""The paper's experiment: Llama-2-7B, FLAN 2021, one control model a task, E on the mixture (Zhao, Ziser, Cohen, 2024).

Look at the data first:  python -m launch.tasks --config=configs/llama2_7b_flan2021.py --out=runs/flan2021-look
Then, on each host:
    python -m launch.run --config=configs/llama2_7b_flan2021.py --workdir=runs/flan2021 --processes=0

Three of the names (newsroom, winogrande, xsum) come from the Parquet submix, a download of 5.5 GB; to go without them:
--config.tasks.sources="('Muennighoff/flan',)" --config.tasks.allow_missing=true
"""

from mossa_jax.config import Compare, Config, Schedule, Tasks, Tokens, Tuning


def get_config() -> Config:
    """Settings as in the authors' runs, but for bfloat16, packed rows and cutting that keeps a prompt's end."""
    return Config(
        name="llama2_7b_flan2021",
        base="meta-llama/Llama-2-7b-hf",
        dtype="bfloat16",
        tasks=Tasks(
            suite="flan2021",
            selection="paper",
            sources=("Muennighoff/flan", "DataProvenanceInitiative/flan2021_submix_original"),
        ),
        tokens=Tokens(template="llama2", max_tokens=1024, row_length=1024),
        tuning=Tuning(
            rank=8,
            alpha=16.0,
            targets=("q_proj", "v_proj"),
            # A packed row holds four to five examples: four rows are about the authors' sixteen examples a step.
            control=Schedule(epochs=3, batch_rows=4, learning_rate=5e-5),
            experimental=Schedule(epochs=3, batch_rows=4, learning_rate=5e-5),
        ),
        compare=Compare(),
    )
