"""Colours and names shared by the static figures and the page: Okabe and Ito's colour-blind safe palette."""

from __future__ import annotations

from collections.abc import Mapping

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.foreign import visible

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


ROLES = {
    **MODEL_COLOURS,
    "control": SCORE_COLOURS["control"],
    "majority": SCORE_COLOURS["majority"],
    **FOREIGN_COLOURS,
    **SECTION_COLOURS,
    "ceiling": CEILING,
    "undefined": UNDEFINED,
}
"""What a colour of the static figures can stand for -> the colour that it has by default."""

Palette = Mapping[str, str]
"""The colours of static figures: role, a key of `ROLES` -> colour."""


def make_palette(colours: Mapping[str, str]) -> Palette:
    """Returns the palette of the figures with some colours of one's own.

    Args:
      colours: role, a key of `ROLES` -> any colour that matplotlib knows; the other roles keep theirs.

    Raises:
      Refusal: 2 for a role that does not exist, or a colour that is none.
    """
    for role, colour in colours.items():
        if role not in ROLES:
            raise Refusal(BAD_CONFIG, f"palette: {role!r} is no role; there is {', '.join(ROLES)}")
        _check_colour(role, colour)
    return ROLES | dict(colours)


def _check_colour(role: str, colour: str) -> None:
    from matplotlib.colors import is_color_like

    if not is_color_like(colour):
        raise Refusal(BAD_CONFIG, f"palette: {role}={colour!r} is no colour; give one such as '#0072B2'")


DEFAULT = make_palette({})
"""The colours that the page uses, too."""


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
    """Cuts a name to fit beside a chart, on one line; what would not be seen in it becomes a sign (`visible`)."""
    name = visible(name)
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
