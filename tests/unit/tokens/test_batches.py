"""Which rows make the batch of a step."""

from dataclasses import dataclass

import numpy as np

from mossa_jax.tokens.batches import Batches, batch_index, rows_per_batch


@dataclass(frozen=True)
class Rows:
    """So many packed rows of one length, without their contents."""

    count: int
    length: int

    def __len__(self) -> int:
        return self.count


def test_batches_run_through_one_permutation_after_another():
    rows, batch = 10, 4
    flat = np.concatenate([batch_index(rows, batch, (7, 2), step) for step in range(15)])
    epochs = flat.reshape(-1, rows)
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)
    assert np.array_equal(batch_index(rows, batch, (7, 2), 11), flat[44:48])  # pure: no step before is needed
    assert not np.array_equal(batch_index(rows, 10, (8, 2), 0), epochs[0])
    # A batch larger than the task goes round several times.
    assert sorted(np.bincount(batch_index(3, 8, (1,), 0), minlength=3).tolist()) == [2, 3, 3]


def test_long_batches_are_spread_evenly_and_every_row_comes_equally_often():
    batches = Batches.of([Rows(12, 100), Rows(6, 200)], 4, seed=(3,))
    # Batches of 4 short and of 2 long rows: 3 + 3 per epoch.
    assert batches.sizes == (4, 2) and batches.per_epoch == 6
    steps = [batches.at(step) for step in range(12)]
    assert [kind for kind, _ in steps] == [0, 1] * 6
    for kind, rows in ((0, 12), (1, 6)):
        shown = np.concatenate([index for here, index in steps if here == kind])
        assert np.bincount(shown, minlength=rows).tolist() == [2] * rows
    uneven = Batches.of([Rows(100, 100), Rows(3, 200)], 4)
    kinds = np.asarray([uneven.at(step)[0] for step in range(53)])  # two epochs
    assert kinds.sum() == 3 and np.diff(np.flatnonzero(kinds)).min() >= 17
    assert {Batches.of([Rows(0, 100), Rows(5, 200)], 4).at(step)[0] for step in range(9)} == {1}
    plain = Batches.of([Rows(12, 100)], 4, seed=(3,))
    assert all(plain.at(step)[0] == 0 for step in range(9))
    assert np.array_equal(plain.at(7)[1], batch_index(12, 4, (3,), 7))


def test_a_batch_of_long_rows_has_as_many_positions_as_one_of_short_rows():
    assert rows_per_batch(8, 128, 128) == 8 and rows_per_batch(8, 128, 512) == 2
    assert rows_per_batch(8, 128, 500) == 2 and rows_per_batch(2, 128, 512) == 1
