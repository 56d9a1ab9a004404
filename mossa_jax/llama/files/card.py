"""The card of an exported adapter or model: `README.md` as the Hugging Face hub and PEFT know it.

Names of tasks and folders are data of others: in the header a YAML library quotes them, in the text they stand in code
spans that they cannot leave.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CARD = "README.md"

_HUB_DATA = re.compile(r"([\w.-]+/[\w.-]+)@[0-9a-f]{7,64}")
_HUB_MODEL = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SEED = re.compile(r"\.seed(\d+)$")
_UNKNOWN = "unknown"
# Columns of the table of scores: metric -> (its heading, decimals).
_METRICS = {"exact_match": ("exact match", 2), "rouge_l": ("ROUGE-L", 2), "information": ("information, nats", 2)}


def model_card(
    about: Mapping[str, Any], base: str, *, is_whole: bool = False, scores: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Writes the card of a tuned model from the record beside it.

    Args:
      about: the record, as in `mossa.json`; what it does not say is left out or called unknown.
      base: name of the base model: a hub id or a folder.
      is_whole: whether the folder holds a whole model, not a PEFT adapter.
      scores: rows `task, held_out, of, metric, value, low, high, n`, `of` "model" or "base"; empty if there are none
        yet.

    Returns:
      Markdown with a YAML header.
    """
    sections = [
        _what(about, is_whole),
        _base(about, base),
        _tasks(about),
        _template(about),
        _settings(about),
        _loading(about, base, is_whole),
        _scores(scores),
        _licence(about),
        _versions(about),
    ]
    text = "\n\n".join([_header(about, base, is_whole), *(section for section in sections if section)])
    # Half of a surrogate pair, as in the name of a broken folder, has no bytes.
    return text.encode("utf-8", "replace").decode() + "\n"


def code(text: str, in_table: bool = False) -> str:
    """Returns a text as a Markdown code span on one line, whatever it holds; nothing in it is read as Markdown."""
    plain = "".join(letter if letter.isprintable() else _escape(letter) for letter in str(text)) or " "
    ticks = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    plain = plain.replace("|", "\\|") if in_table else plain
    return f"{ticks}{space}{plain}{space}{ticks}"


def _is_hub_id(base: str) -> bool:
    """Whether a base model is named by a hub id; a folder of the same name comes first, as on loading."""
    return bool(_HUB_MODEL.fullmatch(base)) and not os.path.isdir(base)


def _escape(letter: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter, f"\\u{ord(letter):04x}")


def _block(text: str, language: str = "") -> str:
    """Returns a text as a fenced block that it cannot close; control characters other than line ends are escaped."""
    plain = "".join(letter if letter.isprintable() or letter == "\n" else _escape(letter) for letter in text)
    fence = "`" * max(max(map(len, re.findall("`+", plain)), default=0) + 1, 3)
    return f"{fence}{language}\n{plain}\n{fence}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _header(about: Mapping[str, Any], base: str, is_whole: bool) -> str:
    """Returns the YAML header between its two lines of dashes."""
    from huggingface_hub import ModelCardData

    sources = about.get("sources", {}).values()
    matches = [_HUB_DATA.fullmatch(source.get("source", "")) for source in sources]
    has_licence = any(source.get("licence") for source in sources)
    tags = ["mossa_jax", "full-fine-tuning"] if is_whole else ["lora", "transformers", "mossa_jax"]
    if _is_hub_id(base) and not is_whole:
        tags.append(f"base_model:adapter:{base}")
    data = ModelCardData(
        base_model=base,
        library_name="transformers" if is_whole else "peft",
        pipeline_tag="text-generation",
        license="other" if has_licence else _UNKNOWN,
        license_name="terms-of-base-model-and-data" if has_licence else None,
        datasets=sorted({match[1] for match in matches if match}) or None,
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what(about: Mapping[str, Any], is_whole: bool) -> str:
    """Returns the title, and what the model is."""
    name = about.get("model")
    title = f"# {code(name)}" if name else "# LoRA adapter" if not is_whole else "# Tuned model"
    kind = "model tuned in full on" if is_whole else "LoRA adapter tuned on"
    return f"{title}\n\n{_role(about, kind)}"


def _role(about: Mapping[str, Any], kind: str) -> str:
    """Says what a model is in the experiment that it was made for, and whether it is of use outside of it."""
    name, tasks = str(about.get("model", "")), list(about.get("tasks", []))
    seed = _SEED.search(name)
    if "of_steps" in about:
        steps = f"{about.get('steps')} of {about['of_steps']} steps"
        return f"A snapshot after {steps}, kept to see when each layer settles. **Not for use**: it is unfinished."
    if "specialists" in about.get("settings", {}):
        count = len(about["settings"]["specialists"])
        return (
            f"The mean of the updates of {count} specialists, one per task, as one adapter. Nothing was tuned for it."
        )
    if "mixture" in about:
        text = f"The experimental model E: a {kind} a mixture of {_count(len(tasks), 'task')}."
        if seed:
            text += f" It is a repetition with another seed (number {seed[1]}), which shows how much seeds matter."
        return text
    if not tasks:
        return "No record says what it was tuned on."
    task = code(tasks[0])
    if about.get("answers") == "permuted":
        return (
            f"The *twin* of the specialist of the task {task}: a {kind} its prompts with **permuted answers**, each "
            "the answer of another prompt. **Not for use**: it was made wrong on purpose, in order to tell what a "
            "specialist learns about prompts from what it learns about the form and the frequency of answers."
        )
    if seed:
        return (
            f"A second specialist of the task {task} (seed {seed[1]}): a {kind} this task alone, like the first one "
            "but for its seed. It shows how similar two specialists of one task are."
        )
    return f"The specialist of the task {task}: a {kind} this task alone."


def _base(about: Mapping[str, Any], base: str) -> str:
    revision = f", revision {code(about['revision'])}" if about.get("revision") else ""
    text = f"Base model: {code(base)}{revision}."
    if not _is_hub_id(base):
        text += (
            " This is a folder on the machine where the model was tuned: before you share it, name the model's hub id "
            "instead, here in `base_model` and in `adapter_config.json`."
        )
    return text


def _tasks(about: Mapping[str, Any]) -> str:
    """Returns the table of the tasks that the model was tuned on."""
    sources, mixture = about.get("sources", {}), about.get("mixture")
    if not sources:
        return ""
    rows = []
    for task, source in sources.items():
        count = mixture.get(task, 0) if mixture is not None else about.get("rows", 0)
        cells = [code(task, True), code(source.get("cluster", _UNKNOWN), True), f"{count:,}"]
        stated = source.get("licence")
        rows.append([*cells, code(stated, True) if stated else _UNKNOWN, code(source.get("source", ""), True)])
    table = _table(["task", "cluster", "training rows", "licence of the data", "source"], rows)
    cut = about.get("truncated_rows", 0)
    note = f"\n\n{_count(cut, 'training row was', 'training rows were')} too long and cut." if cut else ""
    return f"## Data\n\n{table}{note}"


def _template(about: Mapping[str, Any]) -> str:
    record = about.get("template")
    if not record:
        return ""
    text = (
        f"Template {code(record['name'])}, digest {code(record['digest'])}; `{{content}}` stands for the task's "
        "prompt. BOS comes first, exactly once, if the base model has one. Prompts in another form give other results."
    )
    return f"## Prompt template\n\n{text}\n\n{_block(record['text'])}"


def _settings(about: Mapping[str, Any]) -> str:
    """Returns the table of settings."""
    tuning = about.get("tuning")
    if not tuning:
        return ""
    schedule = tuning["experimental" if "mixture" in about else "control"]
    rows: list[tuple[str, object]] = [("method", schedule["method"])]
    if schedule["method"] == "lora":
        rows += [
            ("rank", tuning["rank"]),
            ("alpha", f"{tuning['alpha']:g}"),
            ("targets", ", ".join(tuning["targets"])),
            ("first block with an adapter", tuning["first_layer"] + 1),
        ]
    rows += [
        ("training rows", f"{about.get('rows', 0):,}"),
        ("packed rows", f"{about.get('packed_rows', 0):,}"),
        ("steps", f"{about.get('steps', 0):,}"),
        ("packed rows per step", schedule["batch_rows"]),
        ("optimizer", schedule["optimizer"]),
        ("peak learning rate", f"{schedule['learning_rate']:g}"),
        ("warm-up, share of steps", f"{tuning['warmup']:g}"),
        ("weight decay", f"{tuning['weight_decay']:g}"),
        ("seed", ", ".join(map(str, about.get("seed", [])))),
    ]
    return "## Settings\n\n" + _table(["setting", "value"], [[name, str(value)] for name, value in rows])


def _loading(about: Mapping[str, Any], base: str, is_whole: bool) -> str:
    """Returns the code that loads the model."""
    revision = f", revision={about['revision']!r}" if about.get("revision") else ""
    if is_whole:
        python = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")'
        )
        return f"## How to load\n\n{_block(python, 'python')}"
    python = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base!r}{revision})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base!r}{revision})\n"
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")'
    )
    flag = f" --revision={shlex.quote(about['revision'])}" if about.get("revision") else ""
    merge = f"mossa export --base={shlex.quote(base)}{flag} --adapter=THIS_FOLDER --out=MERGED_FOLDER"
    merging = f"As one model, merged into its base:\n\n{_block(merge, 'bash')}"
    return f"## How to load\n\n{_block(python, 'python')}\n\n{merging}"


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of scores: a row per task, a column per metric and model."""
    if not scores:
        return "## Scores\n\nNot scored yet."
    cells = {(row["task"], row["of"], row["metric"]): row for row in scores}
    metrics = [metric for metric in _METRICS if any(row["metric"] == metric for row in scores)]
    head = ["task", "prompts"]
    for metric in metrics:
        head += [_METRICS[metric][0], "the base's"]
    rows = []
    firsts: dict[str, Mapping[str, Any]] = {}
    for row in scores:
        firsts.setdefault(row["task"], row)
    for task, first in firsts.items():
        cells_of = [code(task, True) + (" (held out)" if first["held_out"] else ""), f"{first['n']:,}"]
        for metric in metrics:
            cells_of += [_value(cells.get((task, of, metric)), _METRICS[metric][1]) for of in ("model", "base")]
        rows.append(cells_of)
    text = (
        "On the first test prompts of each task, with 95 % intervals. Information: nats per prompt that the model "
        "takes from its prompt; 0 for a model that does not use it."
    )
    return f"## Scores\n\n{text}\n\n{_table(head, rows)}"


def _value(row: Mapping[str, Any] | None, decimals: int) -> str:
    if row is None:
        return ""
    value, low, high = (f"{row[name]:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _licence(about: Mapping[str, Any]) -> str:
    """Says under which terms the model may be used, as far as that is known."""
    sources = about.get("sources", {})
    stated = sorted({source["licence"] for source in sources.values() if source.get("licence")})
    unknown = sum(not source.get("licence") for source in sources.values())
    parts = [f"Licence of the data as its source states it: {', '.join(map(code, stated))}."] if stated else []
    if unknown and stated:
        parts.append(f"Of {_count(unknown, 'task')} the source states none.")
    elif not stated:
        parts.append("The licence of the data is unknown: its source states none.")
    parts.append("The terms of the base model and of the data apply; mossa_jax adds none.")
    return "## Licence\n\n" + " ".join(parts)


def _versions(about: Mapping[str, Any]) -> str:
    versions = about.get("versions", {})
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "Made with mossa_jax" + (f" ({text})." if text else ".")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
