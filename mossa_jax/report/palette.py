"""Colours and words shared by the static figures and the page. Okabe and Ito's colour-blind safe set."""

PRETRAINED_COLOUR, TUNED_COLOUR, CONTROL_COLOUR = "#0072B2", "#D55E00", "#009E73"
MODEL_COLOURS = {"pretrained": PRETRAINED_COLOUR, "tuned": TUNED_COLOUR}
MODEL_NAMES = {"pretrained": "pre-trained", "tuned": "tuned"}
SCORE_NAMES = {"base": "pre-trained", "tuned": "multi-task (E)", "control": "specialist (C_t)"}
SCORE_COLOURS = {"base": PRETRAINED_COLOUR, "tuned": TUNED_COLOUR, "control": CONTROL_COLOUR}
SECTION_COLOURS = {"shared": "#56B4E9", "transition": "#F0E442", "refinement": "#CC79A7"}
UNDEFINED = "#b8b8b8"
TIME_COLOURS = {
    "useful": "#009E73", "restart": "#D55E00", "compile": "#0072B2", "load": "#56B4E9", "input": "#E69F00",
    "checkpoint": "#CC79A7", "export": "#F0E442", "profile": "#5a4fa2", "other": "#9a9a9a",
}  # fmt: skip


def spoken(layer: str) -> str:
    """A layer's name on an axis: `final_norm` is too long for a tick."""
    return {"embed": "emb", "final_norm": "norm"}.get(layer, layer)


def shortened(name: str, limit: int = 38) -> str:
    """A task's name cut to fit beside a chart."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
