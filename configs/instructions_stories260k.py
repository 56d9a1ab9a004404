"""46 real instruction tasks on a real, trained model of 260 thousand parameters; any other folders of the same
layout by overriding two fields.

python -m launch.run --config=configs/instructions_stories260k.py --workdir=runs/stories \
    --config.base=MODEL_FOLDER --config.tasks.folder=TASK_FOLDER
"""

from mossa_jax.config import Compare, Config, Schedule, Tasks, Tokens, Tuning


def get_config() -> Config:
    """All 46 controls in one program, LoRA on every projection, prompts cut at the model's 512 positions."""
    return Config(
        name="instructions_stories260k",
        base="../shared/models/stories260K",
        tasks=Tasks(
            suite="folder",
            folder="../shared/data/instructions",
            held_out=(),
        ),
        tokens=Tokens(template="none", max_tokens=512, row_length=512),
        tuning=Tuning(
            rank=8,
            alpha=16.0,
            targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            control=Schedule(epochs=2, batch_rows=8, learning_rate=2e-3),
            experimental=Schedule(epochs=1, batch_rows=32, learning_rate=2e-3),
            warmup=0.05,
            checkpoint_every=20,
            log_every=5,
            score_prompts=64,
            score_tokens=32,
        ),
        compare=Compare(batch_rows=16),
    )
