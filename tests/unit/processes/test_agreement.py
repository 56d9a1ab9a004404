"""What processes tell each other over their connections: the same facts, and what process 0 decides."""

import threading

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.processes import agreement


class Together:
    """Exchanges values among threads that stand for processes."""

    def __init__(self, count):
        self.host = "node"
        self._count, self._barrier = count, threading.Barrier(count)
        self._values = {}

    def exchange(self, name, value):
        self._values[name, index()] = value
        self._barrier.wait(20)
        values = [self._values[name, each] for each in range(self._count)]
        self._barrier.wait(20)
        return values


_here = threading.local()


def index():
    return _here.index


@pytest.fixture
def everybody(monkeypatch):
    """Returns a function that calls another in each of three processes: results, or refusals."""
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 3)
    monkeypatch.setattr(agreement.jax, "process_index", index)
    monkeypatch.setattr(agreement, "_peers", Together(3))

    def call(act):
        ends = [None] * 3

        def work(number):
            _here.index = number
            try:
                ends[number] = act(number)
            except Refusal as refusal:
                ends[number] = refusal.code, str(refusal)

        threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return ends

    return call


def test_facts_that_are_the_same_pass(everybody):
    assert everybody(lambda number: agreement.same("the rows", {"task a": 3}, "give the same")) == [None] * 3


def test_all_refuse_alike_where_one_differs(everybody):
    ends = everybody(lambda number: agreement.same("rows", {"a": 3, "b": number // 2}, "give the same", 2))
    assert ends == [(2, "process 2 on node has b=1, process 0 has 0; give the same")] * 3


def test_process_0_decides_for_all(everybody):
    called = []
    assert everybody(lambda number: agreement.decided(lambda: called.append(number) or [number, "x"])) == [[0, "x"]] * 3
    assert called == [0]


def test_what_process_0_refuses_all_refuse(everybody):
    def refuse():
        raise Refusal(2, "in use")

    assert everybody(lambda number: agreement.decided(refuse)) == [(2, "in use")] * 3


def test_one_process_alone_asks_nobody():
    agreement.same("rows", {"a": object()}, "")
    assert agreement.decided(lambda: 5) == 5


def test_processes_that_somebody_else_joined_compare_a_digest(monkeypatch):
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 3)
    monkeypatch.setattr(agreement, "everywhere", lambda value: [value, value, value + 1])
    with pytest.raises(Refusal, match="process 2 and process 0 differ in the rows; give the same") as caught:
        agreement.same("the rows", {"a": 3}, "give the same")
    assert caught.value.code == 3
