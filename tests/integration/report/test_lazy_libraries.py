"""A command that draws nothing loads no plotting library, so that its settings cannot stop the command."""

import os
import subprocess
import sys

PROGRAM = """
import sys
import mossa_jax.run.pipeline
loaded = {"matplotlib", "plotly"} & set(sys.modules)
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_a_run_is_imported_without_plotting_libraries(tmp_path):
    (tmp_path / "matplotlibrc").write_text("backend: no_such_backend\n")
    broken = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "no_such_backend", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | broken, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
