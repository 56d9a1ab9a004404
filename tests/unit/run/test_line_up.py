"""Which models a task compares: two lineups at most, and no cells of models that only fill a place."""

from types import SimpleNamespace

from mossa_jax.config import TUNED, Tuning
from mossa_jax.run.lineup import draw_mismatched, line_up
from mossa_jax.similarity.lineup import BASE, OWN, E, Lineup
from mossa_jax.tasks.controls import control_models
from mossa_jax.tasks.suite import Suite, Task


def make_run(**tuning):
    tasks = tuple(Task(f"t{number}", f"c{number // 2}", read=lambda split: []) for number in range(6))
    suite, tuning = Suite("s", tasks), Tuning(**tuning)
    return SimpleNamespace(
        suite=suite,
        controls=control_models(suite, tuning),
        experimental_names=[TUNED, *[f"{TUNED}.seed{number}" for number in range(1, tuning.seeds)]],
        config=SimpleNamespace(tuning=tuning, compare=SimpleNamespace(mismatched=1), seed=0),
        seed=lambda name: (0, len(name)),
    )


def names_of(run, number):
    """Returns the pairs of a task's models whose cells are kept, by name."""
    compared = line_up(run, run.suite.tasks[number])
    assert len(compared.names) == compared.lineup.models
    pairs = [pair for pair in compared.lineup.pairs if not compared.fillers.intersection(pair)]
    assert pairs[:2] == [(BASE, OWN), (E, OWN)]
    return [(compared.names[a], compared.names[b]) for a, b in pairs]


def test_a_task_with_seeds_and_a_twin_compares_them_and_its_ceiling():
    run = make_run(seeds=2, control_seeds=3)
    pairs = names_of(run, 0)
    own = [(side, "t0") for side in (None, TUNED, f"{TUNED}.seed1")]
    others = [(side, f"t0{end}") for end in (".seed1", ".seed2", ".twin") for side in (None, TUNED)]
    assert pairs[:9] == [*own, *others] and pairs[-3:] == [("t0", "t0.seed1"), ("t0", "t0.seed2"), (None, TUNED)]
    (mismatched,) = {control for _, control in pairs[9:-3]}
    assert mismatched in {"t2", "t3", "t4", "t5"} and len(pairs) == 14
    assert len(names_of(run, 1)) == 6  # the second task of its cluster has neither


def test_tasks_with_one_of_the_two_have_the_lineup_of_both_but_not_its_cells():
    run = make_run(seeded=("t0",), twins=("t1",))
    lineups = {line_up(run, task).lineup for task in run.suite.tasks}
    assert lineups == {Lineup(mismatched=1), Lineup(mismatched=1, control_seeds=1, twins=1)}
    assert {control for _, control in names_of(run, 0)} >= {"t0.seed1"} and "t0.twin" not in str(names_of(run, 0))
    assert {control for _, control in names_of(run, 1)} >= {"t1.twin"} and "seed1" not in str(names_of(run, 1))
    assert ("t1", "t1") not in names_of(run, 1)
    alone = make_run(control_seeds=1, twins=())
    assert {line_up(alone, task).lineup for task in alone.suite.tasks} == {Lineup(mismatched=1)}


def test_a_task_that_comes_changes_a_draw_only_where_it_is_drawn_itself():
    def draws(count):
        tasks = tuple(Task(f"t{number}", f"c{number}", read=lambda split: []) for number in range(count))
        config = SimpleNamespace(seed=3, compare=SimpleNamespace(mismatched=6))
        run = SimpleNamespace(suite=Suite("s", tasks), config=config)
        return {task.name: draw_mismatched(run, task) for task in tasks}

    before, after = draws(30), draws(31)
    changed = [name for name in before if before[name] != after[name]]
    assert all("t30" in after[name] for name in changed) and 0 < len(changed) < 15
    assert all(name not in drawn and len(set(drawn)) == 6 for name, drawn in after.items())
    assert len({other for drawn in after.values() for other in drawn}) > 15
