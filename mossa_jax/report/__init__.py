"""Report: static figures and one offline page, from the table, the findings and the training records."""

from mossa_jax.report.figures import write_figures
from mossa_jax.report.page import write_page

__all__ = ["write_figures", "write_page"]
