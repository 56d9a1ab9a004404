"""Which control models a run trains."""

import pytest

from mossa_jax.config import Tasks, Tuning
from mossa_jax.errors import Refusal
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.controls import chosen_tasks, control_models
from mossa_jax.tasks.suite import Suite, Task

TASKS = tuple(Task(name, cluster, lambda split: iter(())) for name, cluster in ("ax", "bx", "cy", "dy", "ez"))
SUITE = Suite("five", TASKS, held_out=("c", "e"))


def test_one_per_cluster_is_the_first_of_the_mixture_or_the_first():
    assert chosen_tasks(SUITE, "field", ("one_per_cluster",)) == ("a", "d", "e")
    assert chosen_tasks(SUITE, "field", ("one_per_cluster", "b")) == ("a", "b", "d", "e")
    assert chosen_tasks(SUITE, "field", ("all",)) == tuple("abcde") and chosen_tasks(SUITE, "field", ()) == ()
    with pytest.raises(Refusal, match="field"):
        chosen_tasks(SUITE, "field", ("nope",))


def test_seeds_and_twins_stand_beside_their_task():
    models = control_models(SUITE, Tuning(control_seeds=3, seeded=("x",), twins=("a",)))
    names = ["a", "a.seed1", "a.seed2", "a.twin", "b", "b.seed1", "b.seed2", "c", "d", "e"]
    assert list(models) == names and [name for name, model in models.items() if model.is_twin] == ["a.twin"]
    assert {model.task.name for model in models.values()} == set("abcde")
    assert len(control_models(SUITE, Tuning())) == 5 + 3 + 3
    assert len(control_models(SUITE, Tuning(control_seeds=1, twins=()))) == 5


@pytest.mark.parametrize("name", ["a.seed1", "b.twin"])
def test_names_of_models_are_no_names_of_tasks(name, monkeypatch):
    suite = Suite("one", (Task(name, "x", lambda split: iter(())), *TASKS))
    monkeypatch.setattr("mossa_jax.tasks._suite", lambda config: suite)
    with pytest.raises(Refusal, match=r"\.seed<N> or \.twin"):
        load_suite(Tasks(held_out=()))
