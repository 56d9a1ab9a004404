"""Report: static figures and one offline page, from the table, the findings and the training records.

Read in this order: `inputs` (what a report is drawn from), `figures` and `score_figure` (the static figures, made of
`figure_elements`), `page` (the page, from `page*.html.j2`, `style.css` and `charts.js`, which draws `chart_data`),
`tables` (its tables), `time_spent` (its section on time). `length_histograms` is the figure of the preview. `palette`
holds the colours and names of all, `html_parts` what every page is made of.

Several runs: `runs_inputs`, `runs_tables` (as texts), `runs_text` (the console), `runs_figures`, and `runs_page`, from
`runs.html.j2` and `runs.js`. `drawing.js` is what `charts.js` and `runs.js` share.

matplotlib and plotly are imported inside the functions that draw, so that their settings cannot stop a command that
draws nothing.
"""

from mossa_jax.report.figures import write_figures
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.page import write_page

__all__ = ["ReportInputs", "write_figures", "write_page"]
