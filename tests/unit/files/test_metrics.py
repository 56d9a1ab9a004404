"""metrics.jsonl: each line is checked, and a damaged one costs no other."""

import json

import pytest
from etils import epath

from mossa_jax.files.metrics import Metrics, lines_in_words

RECORDS = [{"model": "ü", "step": step, "loss": 0.1 * step} for step in range(6)]


@pytest.fixture
def metrics(tmp_path):
    metrics = Metrics(epath.Path(tmp_path))
    for record in RECORDS:
        metrics.append(record)
    return metrics


def test_lines_are_json_and_come_back(metrics):
    rows = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert [{**row, "crc": None} for row in rows] == [{**record, "crc": None} for record in RECORDS]
    assert metrics.read() == (RECORDS, [])


def test_every_flipped_bit_is_harmless_or_costs_the_lines_that_it_touches(metrics):
    data = metrics.path.read_bytes()
    damaged = 0
    for bit in range(0, 8 * len(data), 31):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        metrics.path.write_bytes(flipped)
        records, lines = Metrics(metrics.path.parent).read()
        # The first line may lose its check, and then counts as one of an older version: its figures are right.
        assert all({name: row[name] for name in RECORDS[0]} in RECORDS for row in records)
        assert len(records) >= len(RECORDS) - 2 and (lines or len(records) >= len(RECORDS) - 1)
        damaged += bool(lines)
    assert damaged > 0.9 * 8 * len(data) / 31 - 8


def test_damaged_lines_are_named_once(metrics, caplog):
    data = metrics.path.read_bytes().split(b"\n")
    data[1], data[3] = b"\xff\xfe" + data[1], b""[:0] + data[3][: len(data[3]) // 2]
    metrics.path.write_bytes(b"\n".join(data))
    for _ in range(2):
        assert metrics.read() == ([RECORDS[0], RECORDS[2], *RECORDS[4:]], [2, 4])
    assert [record.message for record in caplog.records] == [f"{metrics.path}: lines 2, 4 are damaged and left out"]
    assert lines_in_words([7]) == "line 7 is" and lines_in_words(list(range(9))) == "lines 0, 1, 2, 3, 4 and 4 more are"


def test_lines_without_a_check_stand_before_all_others(metrics):
    lines = metrics.path.read_bytes()
    metrics.path.write_bytes(b'{"old": 1}\n5\n' + lines + b'{"old": 2}\n')
    assert metrics.read() == ([{"old": 1}, *RECORDS], [2, len(RECORDS) + 3])
