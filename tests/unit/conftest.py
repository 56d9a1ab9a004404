"""What makes a test a unit test: it starts no process."""

import subprocess

import pytest


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail(f"a unit test starts a process ({arguments}); it belongs in tests/integration or tests/acceptance")

    monkeypatch.setattr(subprocess, "Popen", refuse)
