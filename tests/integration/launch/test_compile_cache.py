"""Commands keep their compiled programs: the second of the same kind compiles nothing, by JAX's own log."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support.tiny_llama import random_texts


@pytest.fixture
def command(root, tmp_path):
    """Runs a command as on a user's machine; returns how many programs JAX compiled and how many it found."""
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "MOSSA_CACHE": str(tmp_path / "cache")}
    environment |= {"JAX_LOG_COMPILES": "1", "JAX_EXPLAIN_CACHE_MISSES": "1", "HF_HUB_OFFLINE": "1"}

    def run(*words) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        misses = done.stderr.count("PERSISTENT COMPILATION CACHE MISS")
        hits = done.stderr.count("Persistent compilation cache hit")
        # Every program was looked for.
        assert misses + hits == len(re.findall("Finished XLA compilation", done.stderr))
        return misses, hits

    return run


def test_the_second_comparison_compiles_nothing(command, tiny, tiny_adapters, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"inputs": text}) + "\n" for text in random_texts(6)))

    def compare(out, *more):
        adapter = tiny_adapters[0][0]
        flags = [f"--base={tiny.folder}", "--experimental=pretrained", f"--control={adapter}"]
        return command(
            "launch.compare", *flags, f"--prompts={tmp_path / 'prompts.jsonl'}", f"--out={tmp_path / out}", *more
        )

    first, second = compare("one.csv"), compare("two.csv")
    assert first[0] > 0 and second[0] == 0 and second[1] >= first[0]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert len(list((tmp_path / "cache/compiled").rglob("*.kept"))) == first[0]


@pytest.mark.slow
def test_the_second_run_in_another_folder_compiles_nothing(command, tiny_config, tmp_path):
    flags = ["launch.run", f"--config={tiny_config}"]
    first = command(*flags, f"--workdir={tmp_path / 'one'}")
    second = command(*flags, f"--workdir={tmp_path / 'two'}")
    assert first[0] > 20 and second[0] == 0 and second[1] >= first[0]
    for name in ("cka", "scores", "curves"):
        tables = [(tmp_path / folder / f"results/{name}.csv").read_bytes() for folder in ("one", "two")]
        assert tables[0] == tables[1], name
