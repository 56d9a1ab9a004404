"""The parts that static figures are put together from: layer axes, section bands, paired boxes, saving."""

import io

import numpy as np
from etils import epath
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mossa_jax.files.write import write_bytes
from mossa_jax.report.palette import MODEL_COLOURS, MODEL_NAMES, SECTION_COLOURS, spoken

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # Task names are data: a `$` in one is a dollar sign, never mathematics.
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "mossa_jax",
}
MAX_TICKS = 35
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, without the global state of pyplot."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def layer_axis(axes: Axes, layers: list[str], label: bool = True, most: int = MAX_TICKS) -> None:
    """Ticks for layer names at 0, 1, ...; every k-th where there are too many to read."""
    step = max(1, -(-len(layers) // most))
    ticks = [i for i, name in enumerate(layers) if not name.isdigit() or step == 1 or int(name) % step == 0]
    axes.set_xticks(ticks, [spoken(layers[i]) for i in ticks], fontsize=8 if len(ticks) > 20 else 9)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    if label:
        axes.set_xlabel("layer (output of block; emb = embedding, norm = after the final norm)")


def section_bands(axes: Axes, sections: dict, layers: list[str], named: bool = True) -> None:
    """Shade the sections of the network behind a chart over layers; nothing where none were found."""
    if not sections["found"]:
        return
    for name, colour in SECTION_COLOURS.items():
        span = sections[name]
        if span is None or str(span[0]) not in layers or str(span[1]) not in layers:
            continue
        low, high = layers.index(str(span[0])) - 0.5, layers.index(str(span[1])) + 0.5
        axes.axvspan(low, high, color=colour, alpha=0.14, lw=0, zorder=0)
        if named:
            axes.text((low + high) / 2, 1.01, name, transform=axes.get_xaxis_transform(), ha="center",
                      va="bottom", fontsize=8, color="#444444")  # fmt: skip


def paired_boxes(axes: Axes, matrices: dict, layers: list[str]) -> bool:
    """Two boxes per layer over tasks (whiskers at 1.5 quartile ranges, outliers as diamonds).

    Args:
        axes: Where to draw.
        matrices: `pretrained` and `tuned` frames [tasks, layers].
        layers: Layer names, in order.

    Returns:
        Whether anything was drawn.
    """
    drawn = False
    for side, (model, matrix) in zip((-0.2, 0.2), matrices.items(), strict=True):
        columns = [matrix[layer].dropna().to_numpy() for layer in layers]
        places = [i + side for i, column in enumerate(columns) if column.size]
        columns = [column for column in columns if column.size]
        if not columns:
            continue
        drawn = True
        colour = MODEL_COLOURS[model]
        axes.boxplot(
            columns,
            positions=places,
            widths=0.34,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75, "lw": 0.6},
            whiskerprops={"color": colour, "lw": 0.9},
            capprops={"color": colour, "lw": 0.9},
            medianprops={"color": "black", "lw": 1.2},
            flierprops={
                "marker": "d",
                "markersize": 3.5,
                "markerfacecolor": colour,
                "markeredgecolor": "none",
            },
        )
    return drawn


def model_legend(axes: Axes, **where: object) -> None:
    """The legend of pre-trained and tuned."""
    handles = [Patch(color=MODEL_COLOURS[key], label=name, alpha=0.75) for key, name in MODEL_NAMES.items()]
    axes.legend(handles=handles, **{"loc": "lower left", "ncols": 2, "fontsize": 8} | where)


def say(axes: Axes, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555", wrap=True)


def unit_range(axes: Axes, values: np.ndarray) -> None:
    """The CKA axis: 0..1, lower when debiased estimates are negative."""
    finite = values[np.isfinite(values)]
    low = min(0.0, float(finite.min()) - 0.03) if finite.size else 0.0
    axes.set_ylim(low, max(1.03, float(finite.max()) + 0.02) if finite.size else 1.03)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, folder: epath.Path, name: str) -> None:
    """Write `name.png` and `name.pdf` whole or not at all, without dates, so equal input gives equal files."""
    plainly = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": "mossa_jax"},
    }
    with rc_context(STYLE):
        figure.draw_without_rendering()
    # The layout is settled: solving it again for each format would take most of the time.
    figure.set_layout_engine("none")
    for suffix, metadata in plainly.items():
        drawn = io.BytesIO()
        with rc_context(STYLE):
            figure.savefig(drawn, format=suffix, dpi=DPI, metadata=metadata)
        write_bytes(folder / f"{name}.{suffix}", drawn.getvalue())
