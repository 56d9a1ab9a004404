"""Model folders as people have them, each with what transformers makes of it: equal here, or refused by a true name.

One small model is behind all of them, so that one program serves them all; what differs is how it is stored.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from tests.support import tokenizer_layouts as layouts
from tests.support.tiny_llama import import_torch
from tests.support.tokenizer_layouts import edit

ROWS, LAYERS = 336, 2
TEXTS = ["the big red mill", "seven old boats go under it", "rain comes", "near a river the hills stand"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder and what is to come of it.

    Attributes:
      write: makes the folder of a copy of the model.
      refusal: a regular expression that the refusal matches; "" where all has to equal transformers.
      template: that prompts are put into.
      answers: whether greedy answers are compared: not where there is no head.
      oracle: the folder in which transformers reads what this one holds, made from a copy, where it cannot be this one.
    """

    write: Callable[[pathlib.Path], None]
    refusal: str = ""
    template: str = "none"
    answers: bool = True
    oracle: Callable[[pathlib.Path], None] | None = None


def write_base(folder: pathlib.Path, tied: bool = False) -> None:
    """Writes the model that all folders are made of, with Llama 2's layout of a tokenizer."""
    import transformers

    torch = import_torch()
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=ROWS, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=1,
        eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    layouts.llama(folder)


def tensors(folder: pathlib.Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / SINGLE)


def put(folder: pathlib.Path, stored: dict, name: str = SINGLE) -> None:
    from safetensors.torch import save_file

    save_file({key: value.clone().contiguous() for key, value in stored.items()}, folder / name, {"format": "pt"})


def changed(change: Callable[[dict], dict]) -> Callable[[pathlib.Path], None]:
    """Stores other tensors, made from those that are there."""
    return lambda folder: put(folder, change(tensors(folder)))


def renamed(old: str, new: str) -> Callable[[pathlib.Path], None]:
    return changed(
        lambda stored: {
            new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in stored.items()
        }
    )


def with_tensor(name: str, *shape: int, dtype: str = "float32") -> Callable[[pathlib.Path], None]:
    torch = import_torch()
    return changed(lambda stored: stored | {name: torch.full(shape, 2).to(getattr(torch, dtype))})


def without(*names: str) -> Callable[[pathlib.Path], None]:
    return changed(lambda stored: {key: value for key, value in stored.items() if key not in names})


def as_type(dtype: str, only: str = "") -> Callable[[pathlib.Path], None]:
    torch = import_torch()
    return changed(lambda s: {k: v.to(getattr(torch, dtype)) if only in k else v for k, v in s.items()})


def both(*writes: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
    def write(folder: pathlib.Path) -> None:
        for each in writes:
            each(folder)

    return write


def fields(file: str, **values) -> Callable[[pathlib.Path], None]:
    return lambda folder: edit(folder, file, **values)


def text(file: str, content: str) -> Callable[[pathlib.Path], None]:
    def write(folder: pathlib.Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content)

    return write


def remove(*files: str) -> Callable[[pathlib.Path], None]:
    return lambda folder: [(folder / file).unlink() for file in files] and None


def pipe(file: str) -> Callable[[pathlib.Path], None]:
    return both(lambda f: (f / file).unlink(missing_ok=True), lambda f: os.mkfifo(f / file))


def sharded(under: str = "", keep_single: bool = False, scale: float = 1.0, twice: bool = False):
    """Splits the file in two with an index; `twice` repeats a tensor, other numbers in the first shard."""

    def write(folder: pathlib.Path) -> None:
        stored = tensors(folder)
        names = sorted(stored)
        halves = {f"{under}model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        if under:
            (folder / under).mkdir()
        for file, half in halves.items():
            put(folder, {name: stored[name] * scale for name in half}, file)
        if twice:
            first, second = halves
            name = halves[second][0]
            put(folder, {key: stored[key] for key in halves[first]} | {name: stored[name] * 3}, first)
        weight_map = {name: file for file, half in halves.items() for name in half}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if not keep_single:
            (folder / SINGLE).unlink()

    return write


def index_of(weight_map) -> Callable[[pathlib.Path], None]:
    """An index alone, with the weights under another name."""
    return both(
        lambda f: (f / SINGLE).rename(f / "part.safetensors"), text(INDEX, json.dumps({"weight_map": weight_map}))
    )


def saved_as(kind: str) -> Callable[[pathlib.Path], None]:
    """Saves the model again from another class of transformers."""

    def write(folder: pathlib.Path) -> None:
        import transformers

        import_torch().manual_seed(0)
        model = getattr(transformers, kind).from_pretrained(folder, dtype="float32")
        (folder / SINGLE).unlink()
        model.save_pretrained(folder)

    return write


def tie(folder: pathlib.Path) -> None:
    edit(folder, "config.json", tie_word_embeddings=True)


def stops_at(file: str, count: int) -> Callable[[pathlib.Path], None]:
    """Names ids that end an answer, which do come up in the model's own answers."""

    def write(folder: pathlib.Path) -> None:
        from transformers import AutoTokenizer

        ids = torch_answers(folder, AutoTokenizer.from_pretrained(folder)(TEXTS).input_ids)
        common = [answer[2] for answer in ids][:count]
        edit(folder, file, eos_token_id=common if count > 1 else common[0])

    return write


def chat(template) -> Callable[[pathlib.Path], None]:
    return both(lambda f: (f / "chat_template.jinja").unlink(missing_ok=True),
                fields("tokenizer_config.json", chat_template=template))  # fmt: skip


def family(name: str, **config) -> Callable[[pathlib.Path], None]:
    clear = both(remove("tokenizer.json", "tokenizer_config.json"), layouts.FAMILIES[name])
    return both(clear, fields("config.json", **config)) if config else clear


def sentencepiece_only(folder: pathlib.Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")


def head_as_embedding(folder: pathlib.Path) -> None:
    """A tied model that stores the matrix under the name of the head."""
    stored = tensors(folder)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    put(folder, stored)
    tie(folder)


def repeat_head(stored: dict) -> dict:
    return stored | {"lm_head.weight": stored["model.embed_tokens.weight"]}


def torch_ids(folder: pathlib.Path, template: str) -> list[list[int]]:
    """Returns the ids of `TEXTS` as the tokenizer of transformers reads them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template == "none":
        return tokenizer(TEXTS).input_ids
    chats = [[{"role": "user", "content": each}] for each in TEXTS]
    # Not every version returns the ids alone.
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=True).input_ids for c in chats]


def _torch_model(folder: pathlib.Path):
    from transformers import AutoModelForCausalLM

    import_torch().manual_seed(1)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def torch_states(folder: pathlib.Path, prompts: list[list[int]]) -> np.ndarray:
    """Returns the states of the last token, [L + 1, n, D]: embedding, blocks but for the last one, final norm."""
    torch = import_torch()
    model = _torch_model(folder)
    with torch.no_grad():
        states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in prompts]
    return np.stack([[layer[0, -1].numpy() for layer in one] for one in states], axis=1)


def torch_answers(folder: pathlib.Path, prompts: list[list[int]]) -> list[list[int]]:
    """Returns what `generate` writes without sampling, with the folder's own settings."""
    torch = import_torch()
    model = _torch_model(folder)
    answers = []
    for ids in prompts:
        tokens = torch.tensor([ids])
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=6, pad_token_id=0
        )
        answers.append(written[0, len(ids) :].tolist())
    return answers
