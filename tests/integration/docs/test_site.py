"""The site: it builds without a warning or a network, and its generated pages say what the code says."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from mossa_jax.config import Config
from tests.support.paths import ROOT

# The flags that each command has beside those of libraries: imports once, then a child for each command.
FLAGS = """
import importlib, json, os, sys
import jax, launch, pandas, mossa_jax.existing.compare, mossa_jax.run.pipeline
from absl import flags

for name in sys.argv[1:]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        importlib.import_module(f"launch.{name}")
        table = flags.FLAGS.flags_by_module_dict()
        ours = {flag.name for module, found in table.items() if module.startswith("launch") for flag in found}
        os.write(write, json.dumps(sorted(ours)).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    print("flags", name, os.read(read, 60_000).decode())
"""


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(fields, above="config"):
    found = {}
    for name, value in fields.items():
        found |= flat(value, f"{above}.{name}") if isinstance(value, dict) else {f"{above}.{name}": value}
    return found


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) >= 15
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:)?//", page.read_text())
        assert not loaded, page
    assert "layer_states" in (tmp_path / "reference/python.html").read_text()


def test_the_page_of_the_configuration_lists_every_field_with_its_default(hooks):
    sections = re.split(r"^## ", hooks.pages()["reference/config.md"], flags=re.MULTILINE)
    listed = {}
    for section in sections:
        title, _, body = section.partition("\n")
        for place in re.findall(r"`(config[\w.]*)`", title):
            rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| `(.*?)` \| (.*) \|$", body, re.MULTILINE)
            listed |= {f"{place}.{field}": default for field, default, _ in rows}
    fields = flat(dataclasses.asdict(Config()))
    assert listed == {name: repr(value) for name, value in fields.items()}


def test_the_page_of_the_commands_lists_every_flag(hooks):
    shared, commands = hooks.command_flags()
    assert {"run", "tasks", "tune", "compare", "report", "export", "plan", "bench_cka"} <= set(commands)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FLAGS, *commands], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("flags ")]
    assert len(found) == len(commands)
    for name, flags in found:
        documented = {flag["name"] for flag in [*shared, *commands[name][1]]}
        assert set(json.loads(flags)) <= documented, f"{name}: the page lacks flags"
        about = {flag["name"]: flag["about"] for flag in [*shared, *commands[name][1]]}
        assert all(about.values()), f"{name}: flags without a word: {[flag for flag in about if not about[flag]]}"


def test_no_document_is_missing_from_the_navigation():
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == written | {"reference/config.md", "reference/commands.md"}
