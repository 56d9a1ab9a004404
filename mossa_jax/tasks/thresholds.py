"""Limits beyond which a data set gets a warning: the same before a run and in its report."""

FEW_PROMPTS = 50
"""Test prompts per task. Fewer lie far below the hidden size of any real model, where biased CKA is near 1 for any two
models."""

FEW_DISTINCT = 4
"""Distinct test prompts per task. With fewer, debiased CKA is undefined: its sums are divided by n (n - 3)."""

DISTINCT_SHARE = 0.5
"""Distinct test prompts as a share of a task's test prompts. Similarities count each distinct prompt once."""

LARGE_ITEM = 0.5
"""Share of a task's distinct test prompts in one item. From half on, debiased CKA, which compares different items, is
undefined."""

OVERLAP = 0.01
"""Share of test prompts that are also training prompts. One in a hundred moves a mean by less than its interval."""

DUPLICATES = 0.01
"""Share of training rows that repeat an earlier one."""

TOP_ANSWER = 0.8
"""Share of the most frequent test answer, which is the score of a model that always gives that answer."""

TRUNCATED = 0.2
"""Share of rows that are cut to `tokens.max_tokens`."""

FEW_STEPS = 20
"""Optimizer steps of a control model. With fewer, warm-up and decay leave almost no step at the full learning rate."""

FEW_EXAMPLES = 100
"""Examples of a task in the mixture. E does not learn a task from fewer among tens of thousands of others."""
