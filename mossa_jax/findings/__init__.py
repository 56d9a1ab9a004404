"""Findings: from the results table to statements with figures, intervals and verdicts.

Read in this order: `analysis` (all of it, `find`); `cells`, `curves` and `controls` (tables as task-by-layer matrices);
`competence` (which tasks count); `units` (tests and intervals over clusters); then one file per question: `ramps`,
`shapes` and `sections`, `clusters`, `unseen`, `specificity`, `ability`, `ceiling` and `trust`; last `claims` (what is
claimed and how it is judged), `evidence` (the answers in words), `headlines` (each in a line), `warning_kinds` and
`warnings` (what can spoil them), `qualifications` (which warnings touch which claims) and `story` (the result in three
sentences). `json_types` makes every result serialisable.

Several runs: `between_runs` (all of it), `run_tables` (what is compared), `cell_differences` and `run_sizes`.
"""

from mossa_jax.findings.analysis import COLUMNS, SCORE_COLUMNS, find
from mossa_jax.findings.claims import FAMILY_LEVEL, RULES
from mossa_jax.findings.evidence import competence_sentence
from mossa_jax.findings.json_types import to_json_types

__all__ = ["COLUMNS", "FAMILY_LEVEL", "RULES", "SCORE_COLUMNS", "competence_sentence", "find", "to_json_types"]
