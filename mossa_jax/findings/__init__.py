"""Findings: from the results table to statements with figures, intervals and verdicts.

Read in this order: `analysis` (the whole of it, `find`), `curves` (tables as task-by-layer matrices), `resampling`
(tests and intervals over tasks), then one file per question: `sections`, `clusters`, `unseen`, `specificity`,
`ability` and `trust`; last `verdicts` (the answers in words). `json_types` makes every result serialisable.
"""

from mossa_jax.findings.analysis import COLUMNS, SCORE_COLUMNS, find
from mossa_jax.findings.json_types import to_json_types

__all__ = ["COLUMNS", "SCORE_COLUMNS", "find", "to_json_types"]
