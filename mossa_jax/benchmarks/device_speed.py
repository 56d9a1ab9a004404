"""Part `speed` of `device`: what a run's programs reach on this device, each with its share of the measured peak.

Shape letters: A adapters, B rows, S positions, K layers with the embedding and the final norm, n rows of a similarity,
D hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.benchmarks import comparison_overhead
from mossa_jax.benchmarks import device_inputs as inputs
from mossa_jax.benchmarks.device_inputs import Sizes
from mossa_jax.benchmarks.device_timing import Clock, Compilations, Timing, shrink, time_calls, time_pair
from mossa_jax.benchmarks.forward import forward_logits
from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import SHARE, device_room, program_bytes
from mossa_jax.llama.adapters import place_adapters, stack
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.generate import greedy
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.engine import estimate_costs
from mossa_jax.states import PassConfig, keep_states
from mossa_jax.tokens.packing import Packing
from mossa_jax.tuning import population
from mossa_jax.tuning.flops import mean_keys, step_flops

Row = dict[str, Any]
"""One line of the table: `name`, `size`, `seconds`, `rate` and its `unit`, `share` of the peak, and the compilation."""

PAIRS = comparison_overhead.PAIRS
_CHAIN = 8
_TUNING = Tuning()


class Bench:
    """The measurements on one device, with what they have in common.

    Attributes:
      shape: name of the model's shape.
      sizes: what is measured.
      clock: of the benchmark.
      peaks: FLOP/s in products by number type, and bytes/s of the memory (`copy`), once they are measured.
    """

    def __init__(self, shape: str, sizes: Sizes, clock: Clock):
        """Draws nothing yet."""
        self.shape, self.sizes, self.clock = shape, sizes, clock
        self.peaks: dict[str, float] = {}

    @cached_property
    def model(self) -> Model:
        """The model in bfloat16, with random weights."""
        return inputs.random_model(self.shape, inputs.SHAPES[self.shape], "bfloat16")

    @property
    def arch(self) -> Architecture:
        """The model's."""
        return self.model.architecture

    def row(self, name: str, size: str, timing: Timing, **figures: Any) -> Row:
        """Returns a line of the table; `figures` are `amount` with its `unit`, `flops` with the peak's name, and more.

        Args:
          name: of the measurement.
          size: in words.
          timing: of one call.
          **figures: `amount` and `unit` give a rate per second; `flops` and `peak` give a share of the measured peak.
        """
        flops, peak = figures.pop("flops", None), self.peaks.get(figures.pop("peak", "bfloat16"))
        row = {"name": name, "size": size, "unit": figures.pop("unit", ""), "rate": None, "share": None}
        if amount := figures.pop("amount", None):
            row["rate"] = amount / timing.seconds
        if flops and peak:
            row |= {"tflop_per_s": flops / timing.seconds / 1e12, "share": flops / timing.seconds / peak}
        # Since the process began: a runtime keeps no other peak.
        peak_so_far = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return row | dataclasses.asdict(timing) | {"peak_bytes_so_far": peak_so_far} | figures

    def measure_peaks(self) -> list[Row]:
        """Measures square products in bfloat16 and in full float32, and a copy in the device's memory."""
        size, rows = self.sizes.product, []
        for dtype, precision in (("bfloat16", None), ("float32", jax.lax.Precision.HIGHEST)):
            x = jax.random.normal(jax.random.key(0, impl="rbg"), (size, size), dtype) / size**0.5

            @jax.jit
            def products(x: jax.Array, precision: Any = precision) -> jax.Array:
                # A chain, so that starting a program does not count.
                return jax.lax.fori_loop(0, _CHAIN, lambda _, y: jnp.matmul(x, y, precision=precision), x)

            timing = time_calls(partial(products, x), self.sizes.repeats, self.clock)
            self.peaks[dtype] = _CHAIN * 2 * size**3 / min(timing.all_seconds)
            rows.append(
                self.row(f"peak, {dtype} products", f"{size}^3", timing, flops=_CHAIN * 2 * size**3, peak=dtype)
            )
        block = jnp.zeros(self.sizes.copy_bytes // 4, jnp.float32)

        @jax.jit
        def copies(x: jax.Array) -> jax.Array:
            # The barrier keeps the compiler from adding up all turns in one pass.
            return jax.lax.fori_loop(0, _CHAIN, lambda _, y: jax.lax.optimization_barrier(y + 1), x)

        timing = time_calls(partial(copies, block), self.sizes.repeats, self.clock)
        moved = 2 * _CHAIN * block.nbytes
        self.peaks["copy"] = moved / min(timing.all_seconds)
        size_text = f"{block.nbytes / 2**20:,.0f} MiB"
        return [*rows, self.row("peak, memory read and written", size_text, timing, amount=moved / 1e9, unit="GB/s")]

    def measure_forward(self) -> list[Row]:
        """Measures the forward pass of whole rows with their logits."""
        length = self.sizes.row_length

        def attempt(rows: int) -> Row:
            tokens = np.random.default_rng(0).integers(3, self.arch.vocab, (rows, length), np.int32)
            placed = mesh_lib.place(self.model.mesh, tokens, ("rows", None))
            run = partial(forward_logits, self.arch, self.model.mesh, self.model.state, placed)
            timing = time_calls(run, self.sizes.repeats, self.clock)
            flops = tokens.size * self._forward_flops(length)
            return self.row("forward", f"{rows} x {length}", timing, amount=tokens.size, unit="tokens/s", flops=flops)

        return [shrink(self.sizes.rows, attempt, "forward")]

    def measure_tuning(self, adapters: int) -> list[Row]:
        """Measures the LoRA step of a number of adapters, on rows without padding."""
        label = "LoRA step, 1 adapter" if adapters == 1 else f"LoRA step, {adapters} adapters"
        first = self.sizes.rows if adapters == 1 else self.sizes.many_rows
        return [shrink(first, partial(self._step_row, label, adapters), label)]

    def _step_row(self, label: str, adapters: int, rows: int) -> Row:
        sizes = self.sizes
        batch = inputs.full_rows(self.arch.vocab, adapters, rows, sizes)
        lora = inputs.random_adapters(self.arch, adapters, _TUNING)
        run = inputs.Population(self.model, lora, _TUNING, Schedule(), 0, sizes.example)
        *arguments, state, placed, active = run.arguments(run.fresh(), batch)
        rest = placed, active
        room = device_room(self.model.mesh.devices.flat[0])
        with Compilations() as compilations:
            for remat in (False, True):
                step = population.make_step(dataclasses.replace(run.spec, remat=remat))
                compiled = step.lower(*arguments, state, *rest).compile()
                if room is None or program_bytes(compiled)["total"] <= SHARE * room:
                    break
            else:
                raise MemoryError
        holder = [state]
        del state

        def take() -> Any:
            # The step donates its state.
            holder[0], metrics = compiled(*arguments, holder[0], *rest)
            return metrics["loss"]

        timing = time_calls(take, sizes.repeats, self.clock)
        flops = adapters * step_flops(
            self.arch, rows=rows, row_length=sizes.row_length, rank=_TUNING.rank, targets=_TUNING.targets,
            answers=batch.labels.shape[-1],
        )["model"]  # fmt: skip
        size = f"{adapters} x {rows} x {sizes.row_length}" + (", recomputed" if remat else "")
        timing = dataclasses.replace(
            timing,
            compile_seconds=compilations.seconds,
            programs=compilations.programs,
            program_bytes=program_bytes(compiled)["total"],
        )
        loss = float(np.mean(np.asarray(take())))
        return self.row(label, size, timing, amount=batch.tokens.size, unit="tokens/s", flops=flops, loss=loss)

    def measure_states(self) -> list[Row]:
        """Measures the states of prompts that begin with the same ids, run once or in every prompt, in turns."""
        sizes = self.sizes
        lora = inputs.compared_adapters(self.arch)

        def attempt(batch_rows: int) -> list[Row]:
            prompts = inputs.random_prompts(self.arch.vocab, sizes.prompts, (sizes.own, sizes.own), sizes.shared)
            runs: dict[str, Callable[[], Any]] = {}
            for name, share in (("once", True), ("in every prompt", False)):
                config = PassConfig("last", batch_rows, Packing(sizes.row_length, share_prefix=share))
                runs[name] = partial(_states, self.model, lora, prompts, config)
            times = time_pair(runs, sizes.repeats, self.clock)
            size = f"3 models, {len(prompts)} prompts, {batch_rows} rows"
            rows = []
            for name, timing in times.items():
                # Ids that go through the blocks, without padding; below the first block all models have one.
                ids = len(prompts) * sizes.own + (sizes.shared if name == "once" else len(prompts) * sizes.shared)
                flops = comparison_overhead.MODELS * ids * self._block_flops(sizes.shared + sizes.own)
                ratio = timing.seconds / times["once"].seconds
                rows.append(
                    self.row(f"states, shared ids {name}", size, timing, amount=len(prompts), unit="prompts/s",
                             flops=flops, ratio=ratio)
                )  # fmt: skip
            return rows

        return shrink(sizes.batch_rows, attempt, "states")

    def measure_overhead(self, pool: str) -> list[Row]:
        """Measures passes with their comparison beside bare passes over the same rows, in turns."""
        sizes = self.sizes
        lora = inputs.compared_adapters(self.arch)

        def attempt(batch_rows: int) -> list[Row]:
            lengths = (max(sizes.example // 2, 2), sizes.example)
            prompts = inputs.random_prompts(self.arch.vocab, sizes.prompts, lengths)
            config = PassConfig(pool, batch_rows, Packing(sizes.row_length, share_prefix=False))
            work = comparison_overhead.Inputs(self.model, lora, prompts, config)
            runs = {
                "alone": partial(comparison_overhead.forward_only, work),
                "compared": partial(comparison_overhead.forward_and_compare, work),
            }
            times = time_pair(runs, sizes.repeats, self.clock)
            ids = sum(map(len, prompts))
            flops = comparison_overhead.MODELS * ids * self._block_flops(max(map(len, prompts)))
            size = f"3 models, {len(prompts)} prompts, {batch_rows} rows"
            rows = []
            for name, timing in times.items():
                ratio = timing.seconds / times["alone"].seconds
                rows.append(
                    self.row(f"passes {name}, {pool}", size, timing, amount=ids, unit="ids/s", flops=flops, ratio=ratio)
                )
            return rows

        return shrink(sizes.batch_rows, attempt, f"overhead, {pool}")

    def measure_similarity(self) -> list[Row]:
        """Measures CKA of three models at all layers from kept states, without and with permutations."""
        layers, width, count = self.arch.layers + 2, self.arch.hidden, comparison_overhead.MODELS

        def attempt(n: int) -> list[Row]:
            states = jax.jit(
                lambda key: jax.random.normal(key, (count, layers, n, width), jnp.float32),
                out_shardings=mesh_lib.replicated(self.model.mesh),
            )(jax.random.key(0, impl="rbg"))
            rows = []
            for permutations in dict.fromkeys((0, self.sizes.permutations)):
                run = partial(compare_states, states, np.ones(n, bool), PAIRS, permutations=permutations)
                timing = time_calls(run, self.sizes.repeats, self.clock)
                name = f"CKA alone, {permutations} permutations" if permutations else "CKA alone"
                flops = estimate_costs(count, layers, n, width, PAIRS, 1, "last").kept.flops
                share = {} if permutations else {"flops": flops, "peak": "float32"}
                values = {"amount": layers * len(PAIRS), "unit": "values/s"}
                rows.append(self.row(name, f"{count} x {layers} x {n} x {width}", timing, **values, **share, n=n))
            return rows

        return shrink(self.sizes.kept, attempt, "similarity")

    def measure_decoding(self) -> list[Row]:
        """Measures answers of one adapter; decoding by itself is what further tokens take."""
        sizes, mesh = self.sizes, self.model.mesh
        lora = place_adapters(mesh, stack(self.arch, inputs.random_adapters(self.arch, 1, _TUNING)))

        def attempt(rows: int) -> list[Row]:
            tokens = np.random.default_rng(0).integers(3, self.arch.vocab, (rows, sizes.example), np.int32)
            placed = mesh_lib.place(mesh, tokens, ("rows", None))
            lengths = mesh_lib.place(mesh, np.full(rows, sizes.example, np.int32), ("rows",))
            runs: dict[str, Callable[[], Any]] = {
                # No token ends an answer, so every one has its full length.
                str(new): partial(
                    greedy, self.arch, self.model.state, lora, placed, lengths, eos=(-1,), new_tokens=new, mesh=mesh
                )
                for new in (1, 1 + sizes.new_tokens)
            }
            short, long = time_pair(runs, sizes.repeats, self.clock).values()
            size = f"{rows} prompts of {sizes.example}, {sizes.new_tokens} more tokens"
            answers = self.row("prompts read, one token answered", size, short, amount=tokens.size, unit="tokens/s",
                               flops=tokens.size * self._forward_flops(sizes.example))  # fmt: skip
            further = dataclasses.replace(long, seconds=long.seconds - short.seconds)
            if further.seconds <= 0:
                # Too little work to tell from the noise.
                return [answers, self.row("answers", size, long, amount=rows * sizes.new_tokens, unit="tokens/s")]
            # Every new token reads all weights once.
            read = sizes.new_tokens * sum(leaf.nbytes for leaf in jax.tree.leaves(self.model.state))
            share = read / further.seconds / self.peaks["copy"] if "copy" in self.peaks else None
            decoding = self.row("decoding", size, further, amount=rows * sizes.new_tokens, unit="tokens/s")
            return [answers, decoding | {"share": share, "share_of": "memory"}]

        return shrink(sizes.answers, attempt, "decoding")

    def _block_flops(self, keys: int) -> float:
        """FLOPs of a token in all blocks; `keys` ids are in its sequence."""
        arch = self.arch
        blocks = arch.matrix_parameters - arch.vocab * arch.hidden
        return 2 * blocks + 4 * arch.layers * arch.heads * arch.head_dim * mean_keys(keys, 0)

    def _forward_flops(self, keys: int) -> float:
        """FLOPs of a token in all blocks and the head."""
        return self._block_flops(keys) + 2 * self.arch.vocab * self.arch.hidden


def _states(*arguments: Any) -> jax.Array:
    return keep_states(*arguments).states
