"""46 real instruction tasks on a real, trained model of 260 thousand parameters.

Other folders of the same layout take two overrides:

python -m launch.run --config=configs/instructions_stories260k.py --workdir=runs/stories \
    --config.base=MODEL_FOLDER --config.tasks.folder=TASK_FOLDER
"""

from mossa_jax.config import Compare, Config, Schedule, Tasks, Tokens, Tuning


def get_config() -> Config:
    """All controls in one program, LoRA on every projection.

    Prompts keep their last 256 tokens, which two CPU cores train in half an hour; the model itself reads 512.
    """
    return Config(
        name="instructions_stories260k",
        base="../shared/models/stories260K",
        tasks=Tasks(
            suite="folder",
            folder="../shared/data/instructions",
            held_out=(),
            allow_bad_rows=True,  # one of the 14,975 training rows has an empty answer
        ),
        tokens=Tokens(template="none", max_tokens=256, row_length=256),
        tuning=Tuning(
            rank=8,
            alpha=16.0,
            targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            control=Schedule(epochs=1, max_steps=150, batch_rows=2, learning_rate=2e-3),
            experimental=Schedule(epochs=1, max_steps=400, batch_rows=16, learning_rate=2e-3),
            warmup=0.05,
            reproducible=True,
            checkpoint_every=50,
            log_every=10,
            score_prompts=32,
            score_tokens=32,
        ),
        compare=Compare(batch_rows=16),
    )
