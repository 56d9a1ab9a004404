"""The whole experiment on the embedded tasks and a miniature model, in a few minutes on a laptop.

python -m launch.run --config=configs/demo.py --workdir=runs/demo
"""

from mossa_jax.config import Compare, Config, Pretraining, Schedule, Tasks, Tokens, Tuning


def get_config() -> Config:
    """Eight layers, LoRA on every projection, 48 control models in one program.

    They are one for each of 24 tasks, and a second seed and a twin for one task of each of the 12 clusters.
    """
    return Config(
        name="demo",
        base="miniature",
        tasks=Tasks(suite="miniature"),
        tokens=Tokens(template="none", max_tokens=64, row_length=64),
        tuning=Tuning(
            rank=8,
            alpha=16.0,
            targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            control=Schedule(epochs=2, max_steps=160, batch_rows=2, learning_rate=5e-3),
            experimental=Schedule(epochs=1.3, max_steps=600, batch_rows=8, learning_rate=5e-3),
            control_seeds=2,
            seeded=("one_per_cluster",),
            twins=("one_per_cluster",),
            warmup=0.05,
            reproducible=True,
            checkpoint_every=100,
            snapshots=4,
            score_prompts=64,
            score_tokens=8,
        ),
        compare=Compare(),
        pretraining=Pretraining(),
    )
