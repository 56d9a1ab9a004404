"""A sweep over the demo in small: two ranks of the adapters, each with two seeds, so that ranks are seen beside seeds.

python -m launch.run --config=sweep_demo_rank --workdir=runs/ranks
python -m launch.run --config=sweep_demo_rank:tuning.rank=4,seed=1 --workdir=runs/one

The first runs all four, one after another, in folders of runs/ranks; the second runs one of them by itself.
"""

from mossa_jax.config import Config, load_config, sweep


def get_sweep() -> dict[str, Config]:
    """Eight of the demo's tasks, and no analyses beside the comparison."""
    config = load_config("demo")
    config.name = "demo_rank"
    config.tasks.only = ("facts", "sentiment", "reading", "struct to text")
    config.tuning.experimental.max_steps = 200
    config.tuning.snapshots = 0
    for analysis in ("spectrum", "map", "correlates", "factors", "measures", "layers", "weights", "merged", "profile"):
        setattr(config.analyse, analysis, False)
    config.analyse.trajectory = False
    return sweep(config, **{"tuning.rank": (4, 8), "seed": (0, 1)})
