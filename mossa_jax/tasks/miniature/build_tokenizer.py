"""Builds the tokenizer of the miniature world: one token for every word, single characters for anything else.

    python -m mossa_jax.tasks.miniature.build_tokenizer

The vocabulary is counted from the pre-training text and the rows of every task, so no word of the suite is <unk>. The
tokenizer is a unigram model, whose pieces need no intermediate merges, unlike BPE's: in a model with a hidden size of
64, half a table of merges would be a tenth of all parameters.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from mossa_jax.tasks.miniature import TOKENIZER, miniature, pretraining_text, world
from mossa_jax.tasks.suite import SPLITS

_SPECIAL = ("<unk>", "<s>", "</s>")
_CHARACTERS = (*map(chr, range(ord("!"), ord("~") + 1)), "\n")
_WORD_SCORE = -1.0
# Low enough that a word always beats its letters.
_CHARACTER_SCORE = -10.0


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Splits text into words, with the space before them as U+2581, and single punctuation marks and line ends."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[^\w\u2581]"), behavior="isolated"),
        ]
    )


def _corpus() -> list[str]:
    """Returns text with every word of the world, of the pre-training text and of the templates."""
    suite = miniature(train=256, validation=64, test=256)
    prompts = [f"{e.inputs} {e.targets}" for task in suite.tasks for split in SPLITS for e in task.examples(split)]
    words = (*world.TOWNS, *world.TAVI.values(), *world.RUND.values())
    return [*pretraining_text(documents=20_000), *prompts, *words]


def build() -> Tokenizer:
    """Builds the tokenizer: ids 0..2 special, then words by falling count (ties by spelling), then characters."""
    splitter = _pre_tokenizer()
    counts: Counter[str] = Counter()
    for text in _corpus():
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    words = sorted(counts, key=lambda piece: (-counts[piece], piece))
    characters = [c for c in ("\u2581", *_CHARACTERS) if c not in counts]
    vocabulary = [(token, 0.0) for token in _SPECIAL]
    vocabulary += [(word, _WORD_SCORE) for word in words]
    vocabulary += [(character, _CHARACTER_SCORE) for character in characters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer


def save(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into `folder`, which `transformers` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    save(TOKENIZER)
