"""Part `torch` of `device`: transformers, PEFT and a plain CKA on the same device, in a process of their own.

The process ends before our programs take the device's memory, and brings its own CUDA libraries. Whatever is not
installed is left out, with a word.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from mossa_jax.log import log

if TYPE_CHECKING:
    import torch

_CHILD = f"import sys; from {__name__} import main; main(sys.argv[1])"
_PAIRS = ((0, 1), (0, 2), (1, 2))


def measure(work: Mapping[str, Any], seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures in a process of its own.

    Args:
      work: `config` (a config.json), `device`, `rows`, `row_length`, `answer` (labels per example), `example`, `kept`,
        `layers`, `repeats`.
      seconds: after which the process is ended; what it has measured by then counts.

    Returns:
      Rows of the table, and notes about what was left out.
    """
    if importlib.util.find_spec("torch") is None:
        return [], ["torch is not installed: nothing of it was measured"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([sys.executable, "-c", _CHILD, json.dumps(dict(work))], stdout=out, stderr=said)
        notes = []
        try:
            if child.wait(max(seconds, 1)):
                said.seek(0)
                notes.append(f"torch's process failed: {said.read().strip().splitlines()[-1:]}")
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            notes.append(f"torch's process was ended after {seconds:.0f} s")
        out.seek(0)
        lines = [json.loads(line) for line in out.read().splitlines() if line.startswith("{")]
    return [line for line in lines if "name" in line], notes + [line["note"] for line in lines if "note" in line]


def main(arguments: str) -> None:
    """Runs in the process: prints one JSON object per measurement or note."""
    import torch

    work = json.loads(arguments)
    if work["device"] == "cuda" and not torch.cuda.is_available():
        _tell(note=f"torch {torch.__version__} sees no CUDA device: nothing of it was measured")
        return
    torch.manual_seed(0)
    torch.set_default_device(work["device"])
    parts: list[Callable[[dict[str, Any]], None]] = [_similarity]
    if importlib.util.find_spec("transformers") is None:
        _tell(note="transformers is not installed: no forward pass and no LoRA step in torch")
    else:
        parts.append(_forward)
    if importlib.util.find_spec("peft") is None:
        _tell(note="peft is not installed: no LoRA step in torch")
    elif len(parts) == 2:
        parts.append(_lora_step)
    for part in parts:
        try:
            part(work)
        except Exception as error:
            log.exception("torch")
            _tell(note=f"torch, {part.__name__.strip('_')}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        _free()


def _similarity(work: dict[str, Any]) -> None:
    """Plain CKA in feature space, pair by pair; the states of one layer stand for those of all."""
    import torch

    from mossa_jax.benchmarks.plain_cka import torch_features

    states = torch.randn(3, work["kept"], work["config"]["hidden_size"])  # [M, n, D]

    def run() -> None:
        for _ in range(work["layers"]):
            for a, b in _PAIRS:
                torch_features(states[a], states[b])

    count, width = len(_PAIRS) * work["layers"], work["config"]["hidden_size"]
    size = f"3 x {work['layers']} x {work['kept']} x {width}"
    # Three products of two [n, D] for each value.
    flops = 6 * count * work["kept"] * width**2
    _measure(work, "torch: CKA alone", size, run, count, "values/s", flops=flops, peak="float32")


def _forward(work: dict[str, Any]) -> None:
    """The forward pass of transformers, with the logits of all positions."""
    import torch

    model = _model(json.dumps(work["config"])).eval().to(work["device"])

    def attempt(rows: int) -> None:
        ids = _ids(work, rows)

        def run() -> None:
            with torch.inference_mode():
                model(ids, use_cache=False)

        _measure(work, "torch: forward", f"{rows} x {work['row_length']}", run, ids.numel(), "tokens/s")

    _shrink(work["rows"], attempt)


def _lora_step(work: dict[str, Any]) -> None:
    """A step of PEFT: loss of transformers, AdamW, clipping; labels on a quarter of the positions, as in our rows."""
    import peft
    import torch

    base = _model(json.dumps(work["config"])).to(work["device"])
    base.config.use_cache = False
    lora = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, lora).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=work["device"] == "cuda")

    def attempt(rows: int) -> None:
        ids = _ids(work, rows)
        labels = ids.clone()
        # The first ids of each example are its prompt.
        labels.view(rows, -1, work["example"])[..., : -work["answer"]] = -100

        def run() -> None:
            with torch.autocast(work["device"], torch.bfloat16):
                loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        _measure(work, "torch: PEFT step", f"1 x {rows} x {work['row_length']}", run, ids.numel(), "tokens/s")

    _shrink(work["rows"], attempt)


@cache
def _model(config_text: str) -> Any:
    """Draws a model of transformers on the device, in bfloat16; both measurements take the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**json.loads(config_text) | {"attn_implementation": "sdpa"})
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def _ids(work: dict[str, Any], rows: int) -> torch.Tensor:
    import torch

    return torch.randint(3, work["config"]["vocab_size"], (rows, work["row_length"]))


def _measure(
    work: dict[str, Any], name: str, size: str, run: Callable[[], None], amount: float, unit: str, **more: Any
) -> None:
    """Times a call and prints its row: the median of several runs, after two that are not timed."""
    import torch

    is_cuda = work["device"] == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(work["repeats"] + 2):
        start = time.perf_counter()
        run()
        if is_cuda:
            torch.cuda.synchronize()
        if number > 1:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() if is_cuda else None
    _tell(name=name, size=size, unit=unit, rate=amount / median, share=None, seconds=median, all_seconds=seconds,
          amount=amount, compile_seconds=None, programs=None, program_bytes=peak, **more)  # fmt: skip


def _shrink(rows: int, attempt: Callable[[int], None]) -> None:
    """Calls `attempt` with rows that are halved until they fit."""
    import torch

    while True:
        try:
            return attempt(rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        _free()
        rows //= 2


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)
