"""From text to packed rows of token ids, in this order:

- `tokenizer`: a model's tokenizer, the prompt template, truncation.
- `encoded`: examples as ids, in a cache on disk.
- `plan`: which sequences share a row, from their lengths alone.
- `rows`: the rows themselves, to learn from and to read states from.
- `batches`: which rows make the batch of a step.
- `few_sizes`: which sizes serve many lists, so that these share compiled programs.
- `packing`: the one value that a run packs with, from its configuration; and the prefix that prompts share.
"""
