"""Where a data set gets a warning: the same limits before a run and on its page."""

FEW_PROMPTS = 50
"""Test prompts per task. Fewer are far below the width of any real model, where biased CKA is near 1 for any pair."""

FEW_DISTINCT = 4
"""Distinct test prompts per task: the unbiased sums are divided by n (n - 3)."""

DISTINCT_SHARE = 0.5
"""Share of a task's test prompts that are distinct; similarities count each distinct prompt once."""

OVERLAP = 0.01
"""Share of test prompts that are also training prompts: a hundredth moves a mean by less than its interval."""

DUPLICATES = 0.01
"""Share of training rows that repeat another one."""

TOP_ANSWER = 0.8
"""Share of the most frequent test answer: the score of always giving that answer."""

TRUNCATED = 0.2
"""Share of rows that were cut."""

FEW_STEPS = 20
"""Optimizer steps of a control model: with warm-up and decay, hardly any of fewer is taken at the full rate."""

FEW_GIVEN = 100
"""Examples of a task in the mixture: E does not learn a task from fewer, among tens of thousands of others."""
