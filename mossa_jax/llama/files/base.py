"""The tokenizer and architecture of a run's configured base model, before any weights are fetched."""

from __future__ import annotations

from mossa_jax.config import MINIATURE, Config
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.generation_config import unused_settings
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.log import log
from mossa_jax.tokens.tokenizer import Tokenizer, load_tokenizer


def base_tokenizer(config: Config) -> Tokenizer:
    """Loads the tokenizer of a configuration's base model, with its template.

    Raises:
      Refusal: 3 for a model folder without config or tokenizer; 4 when access is denied.
    """
    if config.base == MINIATURE:
        from mossa_jax.tasks.miniature import TOKENIZER

        # The embedded tokenizer has no config.json beside it.
        return load_tokenizer(TOKENIZER, config.tokens.template, bos=1, eos=(2,))
    folder = locate(config.base, config.revision, text_only=True)
    architecture = read_architecture(folder)
    if ignored := unused_settings(folder):
        log.warning(
            "%s: generation_config.json sets %s, which answers here leave out: they are the likeliest tokens",
            config.base,
            ", ".join(ignored),
        )
    return load_tokenizer(folder, config.tokens.template, architecture.bos, architecture.eos, architecture.vocab)


def base_can_share_prefix(config: Config) -> bool:
    """Whether the base model can compute a prefix once for all examples that begin with it.

    Raises:
      Refusal: 3 for a model folder without config; 4 when access is denied.
    """
    # It may not be trained yet, so there is no config to read; it has no window and no dynamic scaling.
    if config.base == MINIATURE:
        return True
    return can_share_prefix(read_architecture(locate(config.base, config.revision, config_only=True)))
