"""The paper's experiment as settings, of which the published configs vary a few."""

from mossa_jax.config import Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning
from mossa_jax.tasks.flan_names import CLUSTERS


def flan2021(name: str, base: str) -> Config:
    """Returns the experiment on FLAN 2021's 60 tasks outside Misc.: one control model per task, and E on their mixture.

    The settings are those of the authors' runs, the first test rows of a task included, except for bfloat16, packed
    rows, and a truncation that keeps the end of a prompt. On a mesh E's four rows and the four slots of the controls
    have a group of devices each; the heads of a row are spread over the devices of a group, which exchange sums in
    every block, so few are best.

    Args:
      name: name of the run.
      base: Hugging Face folder or hub id.

    References:
      Zhao, Ziser, Cohen, "Layer by Layer: Uncovering Where Multi-Task Learning Happens in Instruction-Tuned Large
      Language Models", EMNLP 2024, arXiv 2410.20008.
    """
    return Config(
        name=name,
        base=base,
        dtype="bfloat16",
        tasks=Tasks(
            suite="flan2021",
            selection="paper",
            sources=("Muennighoff/flan", "DataProvenanceInitiative/flan2021_submix_original"),
            only=CLUSTERS,
            test_order="first",
        ),
        tokens=Tokens(template="llama2", max_tokens=1024, row_length=1024),
        tuning=Tuning(
            rank=8,
            alpha=16.0,
            targets=("q_proj", "v_proj"),
            # A packed row holds four to five examples, so four rows are about the authors' sixteen examples per step.
            control=Schedule(epochs=3, batch_rows=4, parts=2, learning_rate=5e-5),
            experimental=Schedule(epochs=3, batch_rows=4, learning_rate=5e-5),
            slots=4,
        ),
        compare=Compare(),
        mesh=Mesh(adapter=4, fsdp=1, tensor=-1),
    )
