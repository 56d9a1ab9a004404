"""Report: static figures and one offline page, from the table, the findings and the training records.

Its rooms: `inputs` (what a report is drawn from) and `palette` (colours and names of all); `charts`, which says what
each chart shows without drawing it; `analyses`, the sections on what is computed beside the comparison; `drawing`, the
static figures; `page`, the page itself; `between_runs`, console and page on several runs.

matplotlib and plotly are imported inside the functions that draw, so that their settings cannot stop a command that
draws nothing.
"""

from mossa_jax.report.drawing.figures import remove_former_figures, write_figures
from mossa_jax.report.drawing.style import STYLE_SHEET
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.page.page import write_page

__all__ = [
    "STYLE_SHEET",
    "ReportInputs",
    "remove_former_figures",
    "write_figures",
    "write_page",
]
