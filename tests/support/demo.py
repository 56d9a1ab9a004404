"""The demo in small: four tasks, few steps, no analyses; for tests of what a run does and not of what it finds."""

import dataclasses

from mossa_jax.config import Analyse

SMALL = (
    "--config.tasks.only=('facts_country','sentiment_review','reading_who','struct_owner')",
    "--config.tasks.max_train=64",
    "--config.tasks.max_test=48",
    "--config.pretraining.steps=60",
    "--config.pretraining.documents=2000",
    "--config.tuning.control.max_steps=30",
    "--config.tuning.experimental.max_steps=30",
    "--config.tuning.checkpoint_every=5",
    "--config.tuning.score_prompts=16",
    "--config.compare.permutations=20",
    "--config.compare.draws=100",
    *(f"--config.analyse.{field.name}=False" for field in dataclasses.fields(Analyse) if field.type in (bool, "bool")),
)
