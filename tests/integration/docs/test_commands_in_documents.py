"""The documents: every command can be typed, every file that is named is there, the site builds without a warning.

Blocks of shell commands are those fenced as `bash`. One behind the comment `<!-- needs a cluster -->` is not started,
only read. What takes long is run with tiny models, tasks and settings in place of those that are named.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mossa_jax
from tests.support.paths import ROOT
from tests.support.tiny_llama import random_texts

DOCUMENTS = [ROOT / name for name in ("README.md", "launch/README.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
_CLUSTER = "<!-- needs a cluster -->"
_BLOCK = re.compile(r"(<!--[^\n]*-->\n)?```(\w+)\n(.*?)```", re.DOTALL)
_FILES = re.compile(r"(?:configs|launch|docs|examples|tests|mossa_jax)/[\w./-]+\.(?:py|sh|sbatch|md|ipynb|env|png)")

# Imports once, then reads the flags of each command in a child of its own: "" or what is wrong with them.
READER = """
import importlib, json, os, sys
import jax, launch.flags, pandas, mossa_jax.existing.compare, mossa_jax.run.pipeline
from absl import flags

for number, (module, *words) in enumerate(json.loads(sys.argv[1])):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.argv = [module, *words]  # config_flags looks there for the fields that are overridden
        try:
            importlib.import_module(module)
            rest = flags.FLAGS(sys.argv)
            problem = f"stray words {rest[1:]}" if rest[1:] and not launch.flags._words.least else ""
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        os.write(write, problem.replace("\\n", " ")[:500].encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    print("problem", json.dumps(os.read(read, 1_000).decode()))
"""

# The same, but each command runs.
RUNNER = """
import json, os, runpy, sys
import jax, launch, pandas, mossa_jax.existing.compare, mossa_jax.run.pipeline

for module, *words in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        sys.argv = [module, *words]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        os._exit(99)
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def blocks(language):
    """(document, text, needs a cluster) of every fenced block of a language."""
    for document in DOCUMENTS:
        for marker, kind, text in _BLOCK.findall(document.read_text(encoding="utf-8")):
            if kind == language:
                yield document.relative_to(ROOT).as_posix(), text, marker.strip() == _CLUSTER


def commands():
    """(document, words, needs a cluster) of every shell command, comments left out."""
    for document, text, cluster in blocks("bash"):
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            if words := shlex.split(line, comments=True):
                yield document, words, cluster


def inline_commands():
    """(document, words) of every command with flags that stands in a sentence; `--config=...` is any configuration."""
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`((?:mossa|python -m launch\.)[^`]* --[^`]*)`", text):
            words = [word.replace("config=...", "config=demo") for word in shlex.split(code)]
            if words[-1] != "--help":
                yield document.relative_to(ROOT).as_posix(), words


def module_and_flags(words):
    """The module behind `mossa NAME ...` or `python -m launch.NAME ...` with its flags; None for other commands.

    A published configuration's name stands for its file.
    """
    if words[0] == "mossa":
        module, flags = f"launch.{words[1]}", words[2:]
    elif Path(words[0]).name == "python" and words[1] == "-m" and words[2].startswith("launch."):
        module, flags = words[2], words[3:]
    else:
        return None
    return [module, *(re.sub(r"^--config=(\w+)$", r"--config=configs/\1.py", word) for word in flags)]


def started(words):
    """The command that a launch script is asked to start, else the command itself."""
    return words[words.index("--") + 1 :] if "--" in words else words


def python(code, items):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(items)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)


def test_flags_and_fields_of_every_command_are_read():
    typed = [(document, words, module_and_flags(started(words))) for document, words, _ in commands()]
    typed = [command for command in typed if command[2]]
    assert len(typed) >= 18, "the documents' commands are no longer found"
    typed += [(document, words, module_and_flags(words)) for document, words in inline_commands()]
    for document, words, (module, *_) in typed:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{document}: {shlex.join(words)}"
    # Some flags look at once whether the run folder that they name is there.
    found = [[word for word in words if word != "--measured=RUN"] for *_, words in typed]
    done = python(READER, found)
    assert done.returncode == 0, done.stderr[-2_000:]
    problems = [json.loads(line.removeprefix("problem ")) for line in done.stdout.splitlines() if "problem" in line]
    pairs = zip(typed, problems, strict=True)
    wrong = [f"{document}: {shlex.join(words)}: {problem}" for (document, words, _), problem in pairs if problem]
    assert not wrong, "\n".join(wrong)


def test_other_commands_are_known():
    """make's goals, pip's extras, tests that are named, launch scripts: nothing else is asked to be typed."""
    goals = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {"docs"}
    extras = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)) | {"docs"}
    for document, words, _ in commands():
        where = f"{document}: {shlex.join(words)}"
        if words[0] == "make":
            assert set(words[1:]) <= goals, where
        elif words[:2] == ["pip", "install"]:
            assert words[2] == "-e" and words[3].startswith("."), where
            assert set(filter(None, words[3].strip(".[]").split(","))) <= extras, where
        elif "pytest" in words:
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), where
        elif words[0].startswith("launch/"):
            assert os.access(ROOT / words[0], os.X_OK), where
        else:
            assert module_and_flags(words), f"{where}: what is this?"


def test_launch_scripts_would_start_what_is_written(tmp_path):
    """Each as it stands but for --dry_run; tokens are looked for in an empty home."""
    token = tmp_path / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_nothing")
    scripts = [(document, words) for document, words, _ in commands() if words[0].startswith("launch/")]
    assert scripts
    for document, words in scripts:
        at = words.index("--")
        dry = ["bash", *words[:at], "--dry_run", *words[at:]]
        dry = [word.replace("$HOME", str(tmp_path)) for word in dry]
        done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "launch.run" in done.stdout, f"{document}: {shlex.join(words)}: {done.stderr}"


def small_command(words, run_flags, places):
    """A documented command with small things in place of those that it names."""
    module, *flags = words
    flags = [
        re.sub(r"=([A-Z_]+(?:\.\w+)?)$", lambda found: f"={places.get(found[1], found[1])}", flag) for flag in flags
    ]
    own = [flag for flag in flags if not flag.startswith(("--config", "--workdir"))]
    if module in ("launch.run", "launch.tune", "launch.report"):
        return [module, *run_flags, *own]
    if module == "launch.tasks":
        out = [f"--out={places['DIR']}" for flag in own if flag.startswith("--out=")]
        return [module, *(flag for flag in run_flags if not flag.startswith("--workdir")), *out]
    if module == "launch.plan":  # TPUs need libtpu and minutes; GPUs are computed
        return [
            module,
            *(flag for flag in flags if not flag.startswith(("--topology", "--suggest", "--measured"))),
            "--topology=h100:8",
        ]
    if module == "launch.runs":
        flags = [places["RUN"] if flag == "RUN" else flag for flag in flags]
    if "--states_a=DIR" in words:
        flags = [f"--states_a={places['A']}", f"--states_b={places['B']}", *flags[2:]]
    return [module, *flags]


@pytest.mark.slow
def test_commands_run(tiny, tiny_adapters, tasks_folder, tmp_path):
    """Runs, looks, comparisons, exports, plans and reports: all that are documented, but for benchmarks."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"inputs": text}) + "\n" for text in random_texts(6)))
    states = mossa_jax.layer_states(mossa_jax.load_model(str(tiny.folder)), random_texts(6))
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for name, rows in states.items():
            np.save(tmp_path / side / f"{name}.npy", rows)
    run_flags = [
        "--config=configs/instructions_stories260k.py", f"--workdir={tmp_path / 'run'}", f"--config.base={tiny.folder}",
        f"--config.tasks.folder={tasks_folder}", "--config.tokens.max_tokens=48", "--config.tokens.row_length=64",
        "--config.tuning.control.max_steps=4", "--config.tuning.experimental.max_steps=4",
        "--config.tuning.experimental.batch_rows=4", "--config.tuning.score_prompts=4",
        "--config.tuning.score_tokens=2", "--config.compare.permutations=20", "--config.compare.draws=50",
        "--config.compare.batch_rows=8",
    ]  # fmt: skip
    order = ("launch.run", "launch.tune", "launch.report", "launch.tasks", "launch.plan", "launch.compare")
    items = []
    for _, words, _ in commands():
        found = module_and_flags(words)
        if found and not found[0].startswith("launch.bench") and "method=full" not in " ".join(words):
            places = {
                "MODEL": tiny.folder, "ADAPTER": tiny_adapters[0][0], "FILE.jsonl": tmp_path / "prompts.jsonl",
                "FILE.csv": tmp_path / f"{len(items)}.csv", "DIR": tmp_path / f"out{len(items)}",
                "A": tmp_path / "a", "B": tmp_path / "b", "RUN": str(tmp_path / "run"),
                "FILE.html": tmp_path / f"{len(items)}.html",
            }  # fmt: skip
            items.append(small_command(found, run_flags, places))
    items = [list(item) for item in dict.fromkeys(map(tuple, items))]
    items.sort(key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    assert {item[0] for item in items} >= {*order, "launch.export", "launch.runs"}
    done = python(RUNNER, items)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("code ")]
    failed = [f"{code}: {shlex.join(item)}" for item, code in zip(items, codes, strict=True) if code]
    assert not failed, "\n".join([*failed, done.stderr[-3_000:]])
    assert (tmp_path / "run/report.html").is_file() and list(tmp_path.glob("*.csv"))
    assert list(tmp_path.glob("out*/model.safetensors")) and list(tmp_path.glob("out*/tasks.csv"))


def test_files_that_are_named_exist():
    for document in [*DOCUMENTS, ROOT / "BUILD_NOTES.md"]:
        text = document.read_text(encoding="utf-8")
        missing = [name for name in _FILES.findall(text) if not (ROOT / name).is_file()]
        assert not missing, f"{document.name} names {missing}"


def test_python_in_the_documents_uses_names_that_exist():
    seen = 0
    for document, text, _ in blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mossa":
                assert hasattr(mossa_jax, node.attr), f"{document}: mossa.{node.attr}"
                seen += 1
    assert seen >= 6
