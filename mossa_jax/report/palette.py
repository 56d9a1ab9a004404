"""Colours and names shared by the static figures and the page: Okabe and Ito's colour-blind safe palette."""

from mossa_jax.config import PRETRAINED, TUNED

BLUE, VERMILLION, GREEN, SKY_BLUE = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
YELLOW, PURPLE, ORANGE = "#F0E442", "#CC79A7", "#E69F00"

MODEL_NAMES = {PRETRAINED: "pre-trained", TUNED: "tuned"}
MODEL_COLOURS = {PRETRAINED: BLUE, TUNED: VERMILLION}
"""Experimental model, as in the results table -> how it is named and drawn."""

SCORE_NAMES = {
    "base": "pre-trained",
    "tuned": "multi-task (E)",
    "control": "specialist (C_t)",
    "majority": "most frequent answer",
}
SCORE_COLOURS = {"base": BLUE, "tuned": VERMILLION, "control": GREEN, "majority": "#8a8a8a"}
"""Model, as in the task scores -> how it is named and drawn."""

METRIC_NAMES = {
    "information": "information (nats per prompt)",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "answer_nll": "loss of the answer (nats per token)",
}
"""Metric, as in the task scores -> how it is named."""

CEILING = "#5a4fa2"
FOREIGN_NAMES = {"twin": "own minus twin", "other": "own minus specialists of other clusters"}
FOREIGN_COLOURS = {"twin": GREEN, "other": ORANGE}
"""Foreign control -> how the specificity against it is named and drawn."""

FAINT = "#9a9a9a"
"""Names of tasks that are left out of the findings."""

SECTION_COLOURS = {"shared": SKY_BLUE, "transition": YELLOW, "refinement": PURPLE}
UNDEFINED = "#b8b8b8"
TIME_COLOURS = {
    "useful": GREEN,
    "restart": VERMILLION,
    "compile": BLUE,
    "load": SKY_BLUE,
    "input": ORANGE,
    "checkpoint": PURPLE,
    "export": YELLOW,
    "profile": "#5a4fa2",
    "other": "#9a9a9a",
}


def layer_label(layer: str) -> str:
    """Returns a layer's name for an axis, where `final_norm` is too long for a tick."""
    return {"embed": "emb", "final_norm": "norm"}.get(layer, layer)


def score_name(model: str) -> str:
    """Returns the name of a scored model: those of `SCORE_NAMES`, further seeds, and twins."""
    kind, _, suffix = model.partition(".")
    name = SCORE_NAMES.get(kind, kind)
    if suffix.startswith("seed"):
        return f"{name}, seed {suffix.removeprefix('seed')}"
    return f"{name}, {suffix}" if suffix else name


def shorten(name: str, limit: int = 38) -> str:
    """Cuts a task's name to fit beside a chart."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
