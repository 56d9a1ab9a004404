"""Tokenizers in the layouts of public model families, trained on a few words and written by their own libraries."""

import functools
import json
import pathlib

from tests.support.tiny_llama import WORDS

CORPUS = [" ".join(WORDS[start:]) for start in range(len(WORDS))] * 3


@functools.cache
def _pieces(of_bytes: bool, specials: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Trains byte pair encoding: (vocabulary, merges), special tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if of_bytes else pre_tokenizers.Metaspace()
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if of_bytes else []
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + len(alphabet) + 60, special_tokens=list(specials), initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def llama(folder: pathlib.Path, kind: str = "LlamaTokenizer", bos: bool = True, **options) -> None:
    """Llama 1 and 2, Mistral, Gemma: pieces of SentencePiece's kind, BOS in front unless it is switched off."""
    import transformers

    vocab, merges = _pieces(False, ("<unk>", "<s>", "</s>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    getattr(transformers, kind)(vocab, merges, add_bos_token=bos, **(names | options)).save_pretrained(folder)


def gemma(folder: pathlib.Path, **options) -> None:
    """Gemma: BOS in front; the names of special tokens are its own."""
    import transformers

    vocab, merges = _pieces(False, ("<pad>", "<eos>", "<bos>", "<unk>"))
    transformers.GemmaTokenizer(vocab, merges, add_bos_token=True, **options).save_pretrained(folder)


def of_bytes(folder: pathlib.Path, kind: str, bos: str | None, eos: str, leads: bool = False, **options) -> None:
    """GPT-2's kind: Llama 3 (`leads`: its rules put BOS in front), Qwen, SmolLM, OLMo, Granite."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    specials = tuple(dict.fromkeys(name for name in (bos, eos, "<|im_start|>", "<|im_end|>") if name))
    vocab, merges = _pieces(True, specials)
    names = {"bos_token": bos, "eos_token": eos, "unk_token": eos}
    if kind != "PreTrainedTokenizerFast":
        getattr(transformers, kind)(vocab=vocab, merges=merges, **(names | options)).save_pretrained(folder)
        return
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.add_special_tokens(list(specials))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = (
        processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
        if leads
        else processors.ByteLevel(trim_offsets=False)
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **(names | options)).save_pretrained(folder)


def edit(folder: pathlib.Path, file: str, **fields) -> None:
    """Changes fields of a JSON file; None removes one."""
    path = folder / file
    stored = (json.loads(path.read_text()) if path.exists() else {}) | fields
    path.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))


def phi3(folder: pathlib.Path) -> None:
    """Phi-3: Llama's pieces, trained without BOS, as its settings say."""
    llama(folder, bos=False, eos_token="</s>")
    edit(folder, "tokenizer_config.json", add_bos_token=False)


FAMILIES = {
    "Llama 2": llama,
    "Mistral": llama,
    "Llama 3": lambda f: of_bytes(f, "PreTrainedTokenizerFast", "<|begin_of_text|>", "<|end_of_text|>", leads=True),
    "Qwen 2.5": lambda f: of_bytes(f, "Qwen2Tokenizer", None, "<|endoftext|>"),
    "Qwen 3": lambda f: of_bytes(f, "Qwen2Tokenizer", None, "<|im_end|>"),
    "SmolLM 2": lambda f: of_bytes(f, "GPT2Tokenizer", "<|im_start|>", "<|im_end|>"),
    "SmolLM": lambda f: of_bytes(f, "GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>"),
    "Gemma": gemma,
    "Phi-3": phi3,
    "OLMo 2": lambda f: of_bytes(f, "GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", pad_token="<|im_end|>"),
    "Granite": lambda f: of_bytes(f, "GPT2Tokenizer", "<|end_of_text|>", "<|end_of_text|>"),
    "DeepSeek": lambda f: of_bytes(f, "PreTrainedTokenizerFast", "<|begin|>", "<|end|>", leads=True),
    "plain bytes": lambda f: of_bytes(f, "PreTrainedTokenizerFast", "<|im_start|>", "<|im_end|>"),
}
"""Family -> what writes a tokenizer in its layout into a folder."""
