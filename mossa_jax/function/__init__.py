"""What models can do with a task's prompts, as measures of their ability.

Read in this order:
  answers.py      greedy answers to prompts
  likelihood.py   log probabilities of given answers, all models at once; each prompt is read once
  information.py  which answers are asked about, and what their probabilities say of a model
  measures.py     measures of answers, and the rows of the table of scores
  estimates.py    means over prompts with intervals over items
  profile.py      layer profiles: models that keep or exchange the adapters of some layers, and their rows
  packed_pairs.py  pairs of prompt and answer in packed rows, which layer profiles read
  variant_schedule.py  the order in which the blocks of all these models are run, each state once
  variants.py     the program that follows it
"""
