"""Rows of JSONL and Parquet files: what is read, what is refused and where, and what is counted."""

import hashlib
import json
import math
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mossa_jax.config import Columns
from mossa_jax.errors import Refusal
from mossa_jax.tasks.row_files import file_digest, file_task, read_examples, read_prompts
from mossa_jax.tasks.suite import Example, split_of

GOOD = b'{"inputs": "in", "targets": "out"}'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.jsonl"


def refused(call, *arguments) -> str:
    with pytest.raises(Refusal) as caught:
        list(call(*arguments))
    assert caught.value.code == 3
    return str(caught.value)


def texts(path, columns=None):
    return [(row.inputs, row.targets) for row in read_examples(path, columns or Columns())]


def test_blank_lines_marks_carriage_returns_and_further_fields_pass(path):
    path.write_bytes(
        b'\xef\xbb\xbf{"inputs": "a\xe2\x80\xa8b", "targets": "c"}\r\n\r\n  \n\x0c\n'
        b'{"inputs": "d", "targets": "\\u00e9", "more": {"deep": [null, NaN, 1e999]}, "template": 7}'
    )
    assert list(read_examples(path, Columns())) == [Example("a\u2028b", "c", -1), Example("d", "é", 7)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"inputs": "a\xff", "targets": "b"}', "UTF-8"),
        (b'{"inputs": "a\xed\xa0\x80", "targets": "b"}', "UTF-8"),  # a surrogate, encoded
        (b'{"inputs": "a", "targets": ', "JSON"),
        (GOOD + GOOD, "JSON"),
        (b"\xef\xbb\xbf" + GOOD, "JSON"),  # a mark is one at the start of the file alone
        (b'["a", "b"]', "list"),
        (b"null", "NoneType"),
        (b'{"inputs": "a"}', "no field 'targets'"),
        (b'{"inputs": "a", "targets": 3}', "'targets' is 3"),
        (b'{"inputs": null, "targets": "b"}', "'inputs' is null"),
        (b'{"inputs": "a", "targets": ""}', "'targets' is empty"),
        (b'{"inputs": " \\u00a0\\n", "targets": "b"}', "'inputs' is empty"),
        (b'{"inputs": "\\ud83d", "targets": "b"}', "surrogate"),
        (b'{"inputs": "a", "targets": "\\ude00\\ud83d"}', "surrogate"),
        (b'{"inputs": "a", "targets": "b", "template": "first"}', "'first'"),
        (b'{"inputs": "a", "targets": "b", "template": true}', "True"),
        (b'{"inputs": "a", "targets": "b", "template": 1.5}', "1.5"),
        (b'{"inputs": "a", "targets": "b", "template": 2147483648}', "2147483648"),
        (b'{"inputs": "a", "targets": "b", "n": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"inputs": "a", "targets": "b", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b', "targets": "b"}', "'inputs'"),
    ],
)
def test_a_bad_line_is_named_or_left_out_and_counted(path, line, words):
    path.write_bytes(GOOD + b"\r\n\n" + line + b"\n" + GOOD + b"\n")
    message = refused(read_examples, path, Columns())
    assert message.startswith(f"{path}:3: ") and words in message and len(message) < 400 + len(str(path))
    count = []
    rows = list(read_examples(path, Columns(), lambda: count.append(1)))
    assert rows == [Example("in", "out")] * 2 and len(count) == 1


def test_a_folders_name_stands_in_the_message_as_it_is(tmp_path):
    for name, place in (("x.jsonl", ":1:"), ("x.parquet", ", row 1:")):
        path = tmp_path / "{0}{a}%s" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"3") if name == "x.jsonl" else pq.write_table(
            pa.table({"inputs": [""], "targets": [""]}), path
        )
        assert refused(read_examples, path, Columns()).startswith(f"{path}{place} ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_named(path, encoding):
    path.write_bytes((GOOD.decode() + "\n").encode(encoding) * 2)
    message = refused(read_examples, path, Columns())
    assert message.startswith(f"{path}:1: ") and "UTF-16" in message


def test_a_line_of_ten_million_bytes_is_read_and_a_longer_one_is_not_held_in_memory(path):
    most = 10_000_000
    longest = json.dumps({"inputs": "in", "targets": ""}).encode()
    longest = longest[:-2] + b"x" * (most - len(longest)) + longest[-2:]
    path.write_bytes(longest + b"\r\n" + GOOD)
    assert [len(row.targets) for row in read_examples(path, Columns())] == [most - 31, 3]
    path.write_bytes(longest[:-2] + b"x" + longest[-2:] + b"\n" + GOOD)
    assert refused(read_examples, path, Columns()).startswith(f"{path}:1: longer than 10000000 bytes")
    with path.open("wb") as file:
        file.write(GOOD + b"\n")
        for _ in range(60):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + GOOD)
    tracemalloc.start()
    rows = list(read_examples(path, Columns(), lambda: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 2 and peak < 25_000_000
    assert refused(read_examples, path, Columns()).startswith(f"{path}:2: ")


def test_a_large_file_is_read_line_by_line(path):
    with path.open("wb") as file:
        for n in range(30_000):
            file.write(json.dumps({"inputs": f"{n} " + "x" * 1000, "targets": "y"}).encode() + b"\n")
    tracemalloc.start()
    total = sum(int(row.inputs.split()[0]) for row in read_examples(path, Columns()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 30_000 * 29_999 // 2 and peak < 3_000_000


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_without_rows_is_refused(path, content):
    path.write_bytes(content)
    for count_bad in (None, lambda: None):
        message = refused(read_examples, path, Columns(), count_bad)
        assert message.startswith(f"{path}:1: ") and "no usable row" in message
    path.write_bytes(content + b"\n3\n")
    assert "(1 bad)" in refused(read_examples, path, Columns(), lambda: None)


def test_prompts_need_no_answers(path):
    path.write_bytes(b'{"inputs": "a", "n": 1, "targets": 3}\n{"inputs": "b", "item": 7, "template": 2}\n')
    assert list(read_prompts(path, Columns())) == [Example("a", ""), Example("b", "", 2, "7")]


@pytest.mark.parametrize("line", [b'{"input": "a"}', b'{"inputs": 2}', b'{"inputs": "a", "item": []}', b"[1]"])
def test_unusable_prompts_are_refused_with_their_line(path, line):
    path.write_bytes(b'{"inputs": "a"}\n' + line + b"\n")
    rows = []
    with pytest.raises(Refusal, match=f"{path.name}:2: "):
        rows.extend(read_prompts(path, Columns()))
    assert rows == [Example("a", "")]


def test_fields_have_the_names_that_columns_give_them(path):
    columns = Columns(inputs="question", targets="answer", template="wording")
    path.write_bytes(b'{"question": "q", "answer": "a", "wording": 2, "inputs": 0, "template": "x"}\n')
    assert list(read_examples(path, columns)) == [Example("q", "a", 2)]
    assert "no field 'inputs'" in refused(read_examples, _write(path, {"question": "q", "answer": "a"}), Columns())
    parquet = path.with_suffix(".parquet")
    pq.write_table(pa.table({"wording": [5], "answer": ["a"], "question": ["q"], "inputs": [0]}), parquet)
    assert list(read_examples(parquet, columns)) == [Example("q", "a", 5)]


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_rows_come_in_order_over_groups_and_batches(tmp_path, kind):
    path = tmp_path / "x.parquet"
    inputs = [f"é {n % 700}" for n in range(1000)]
    table = pa.table({"targets": pa.array([f"t{n}" for n in range(1000)]), "inputs": pa.array(inputs).cast(kind)})
    pq.write_table(table, path, row_group_size=300)
    assert texts(path) == [(inputs[n], f"t{n}") for n in range(1000)]


def _broken_text():
    """A column that says it is text and is not UTF-8."""
    return pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", b"\xff"]).buffers())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"inputs": ["a", None], "targets": ["b", "c"]}, "row 2: field 'inputs' is null"),
        ({"inputs": ["a", "b"], "targets": ["b", " "]}, "row 2: field 'targets' is empty"),
        ({"inputs": ["a", "b"], "targets": ["b", "c"], "template": [0, None]}, "row 2: field 'template'"),
        ({"inputs": ["a", "b"], "targets": ["b", "c"], "template": [0, -2]}, "row 2: field 'template' is -2"),
        ({"inputs": _broken_text(), "targets": ["b", "c"]}, "row 2: not valid UTF-8"),
    ],
)
def test_a_bad_row_of_parquet_is_named_or_left_out_and_counted(tmp_path, columns, words):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    message = refused(read_examples, path, Columns())
    assert message.startswith(f"{path}, ") and words in message
    count = []
    assert len(list(read_examples(path, Columns(), lambda: count.append(1)))) == 1 and len(count) == 1


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"inputs": ["a"], "answer": ["b"]}, "no column 'targets'; there are inputs, answer"),
        ({"inputs": ["a"], "targets": [1]}, "'targets' is of type int64"),
        ({"inputs": [["a"]], "targets": ["b"]}, "'inputs' is of type list"),
        ({"inputs": [1.5], "targets": ["b"]}, "'inputs' is of type double"),
        ({"inputs": ["a"], "targets": ["b"], "template": [True]}, "'template' is of type bool"),
        ({"inputs": pa.array([], pa.string()), "targets": pa.array([], pa.string())}, "no usable row"),
    ],
)
def test_a_parquet_file_without_the_right_columns_is_refused(tmp_path, columns, words):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    for count_bad in (None, lambda: None):
        message = refused(read_examples, path, Columns(), count_bad)
        assert message.startswith(str(path)) and words in message


def test_an_incomplete_parquet_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"inputs": [f"a{n}" for n in range(500)], "targets": ["b"] * 500}), path)
    whole = path.read_bytes()
    cuts = (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], whole[:60] + whole[90:], GOOD)
    for content in cuts:
        path.write_bytes(content)
        message = refused(read_examples, path, Columns())
        assert message.startswith(str(path)) and "Parquet" in message and "again" in message
    for n in range(4, len(whole), 37):  # a wrong byte gives rows or a refusal
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 0x41]) + whole[n + 1 :])
        try:
            assert all(row.inputs and row.targets for row in read_examples(path, Columns()))
        except Refusal as refusal:
            assert refusal.code == 3


def test_missing_files_and_files_of_another_type_are_refused(tmp_path):
    for name in ("none.jsonl", "none.parquet"):
        assert str(tmp_path / name) in refused(read_examples, tmp_path / name, Columns())
    assert ".jsonl, .jsonl.gz or .parquet" in refused(read_examples, tmp_path / "x.csv", Columns())


def test_a_task_reads_to_its_limit_and_counts_bad_rows(tmp_path):
    _write(tmp_path / "train.jsonl", *[{"inputs": f"{n}", "targets": "y" if n != 2 else ""} for n in range(5)])
    pq.write_table(pa.table({"inputs": ["t"], "targets": ["u"]}), tmp_path / "test.parquet")
    files = {"train": tmp_path / "train.jsonl", "test": tmp_path / "test.parquet"}
    task = file_task("name", "kind", files.get, Columns(), True, "here")
    assert (task.name, task.cluster, task.source) == ("name", "kind", "here")
    assert [row.inputs for row in task.examples("train")] == ["0", "1", "3", "4"]
    assert task.bad_rows == {"train": 1}
    task.examples("train")
    assert task.bad_rows == {"train": 1}
    assert [row.inputs for row in task.examples("train", 2)] == ["0", "1"] and task.bad_rows == {}
    assert task.examples("test") == [Example("t", "u")] and task.examples("validation") == []
    strict = file_task("name", "kind", files.get, Columns(), False, "here")
    assert [row.inputs for row in strict.examples("train", 2)] == ["0", "1"]  # what is not asked for is not read
    assert "train.jsonl:3:" in refused(strict.examples, "train")
    lost = file_task("name", "kind", {"train": files["train"]}.get, Columns(), False, "here")
    message = refused(lost.examples, "test")
    assert "'name'" in message and "test" in message and "here" in message
    assert message == refused(lost.fingerprint, "test")


def test_the_fingerprint_follows_bytes_columns_and_strictness(tmp_path):
    path = _write(tmp_path / "x.jsonl", {"inputs": "a", "targets": "b"})
    copy = _write(tmp_path / "y.jsonl", {"inputs": "a", "targets": "b"})

    def fingerprint(path, columns=None, allow_bad_rows=False, split="train"):
        locate = {"train": path, "test": path}.get
        return file_task("t", "c", locate, columns or Columns(), allow_bad_rows, "s").fingerprint(split)

    first = fingerprint(path)
    assert fingerprint(copy) == first
    others = [
        fingerprint(path, Columns(inputs="x")), fingerprint(path, Columns(targets="x")),
        fingerprint(path, Columns(template="x")), fingerprint(path, allow_bad_rows=True),
        fingerprint(path, split="validation"), fingerprint(_write(copy, {"inputs": "a", "targets": "c"})),
    ]  # fmt: skip
    assert len({first, *others}) == 7
    assert fingerprint(path, Columns(task="x", cluster="y")) == first


def test_a_files_digest_is_its_sha256(path):
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(bytes(3_000_001))
    assert file_digest(path) == hashlib.sha256(bytes(3_000_001)).hexdigest()


def test_a_texts_split_is_its_hash_as_a_fraction():
    # sha256("abc") begins ba7816bf..., 0.7284 of the way.
    assert math.isclose(0xBA7816BF / 2**32, 0.7284, abs_tol=1e-4)
    assert split_of("abc", 0.7283) == "train" and split_of("abc", 0.7285) == "test"
    chosen = {share: {n for n in range(20_000) if split_of(f"é{n}", share) == "test"} for share in (0.1, 0.3)}
    assert chosen[0.1] < chosen[0.3]
    for share, texts in chosen.items():
        assert abs(len(texts) - 20_000 * share) < 4 * math.sqrt(20_000 * share * (1 - share))


def test_items_are_texts_or_whole_numbers_and_anything_else_is_a_bad_row(tmp_path):
    row = {"inputs": "p", "targets": "q"}
    path = tmp_path / "rows.jsonl"
    items = [{"item": "passage 1"}, {"item": 7}, {"item": None}, {}, {"item": 1.5}, {"item": True}, {"item": [1]}]
    path.write_text("".join(json.dumps(row | item) + "\n" for item in items))
    bad = []
    examples = list(read_examples(path, Columns(), lambda: bad.append(1)))
    assert [example.item for example in examples] == ["passage 1", "7", "", ""] and len(bad) == 3


@pytest.mark.parametrize(("items", "names"), [(["a", None, "b"], ["a", "", "b"]), ([3, None, 4], ["3", "", "4"])])
def test_a_parquet_column_names_items(tmp_path, items, names):
    path = tmp_path / "rows.parquet"
    table = pa.table({"inputs": ["p"] * 3, "targets": ["q"] * 3, "item": items})
    pq.write_table(table, path)
    assert [example.item for example in read_examples(path, Columns())] == names


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 18])
def test_lines_end_as_any_system_ends_them_wherever_a_block_ends(path, monkeypatch, block):
    monkeypatch.setattr("mossa_jax.tasks.row_files._BLOCK", block)
    texts = ["a", "b\u2028c", "d\u0085e", "f\x0bg", "h" * 20]
    rows = [json.dumps({"inputs": text, "targets": "t"}, ensure_ascii=False).encode() for text in texts]
    for end in (b"\n", b"\r\n", b"\r"):
        for tail in (b"", end, end + b" " + end):
            path.write_bytes(b"\xef\xbb\xbf" + (end + end).join(rows) + tail)
            assert [row.inputs for row in read_examples(path, Columns())] == texts
        path.write_bytes(end.join([*rows, b"x"]))
        assert refused(read_examples, path, Columns()).startswith(f"{path}:{len(rows) + 1}: not valid JSON")


def test_a_text_where_a_template_or_an_item_should_be_names_the_flag_that_helps(path):
    for field, value in (("template", "prompt_with_options"), ("item", [1])):
        path.write_text(json.dumps({"inputs": "i", "targets": "t", field: value}))
        assert f"--config.tasks.columns.{field}= reads none" in refused(read_examples, path, Columns())
        assert len(list(read_examples(path, Columns(**{field: ""})))) == 1


def test_a_field_that_is_not_there_is_met_with_those_that_are(path):
    path.write_text('{"input": "i", "output": "o"}')
    words = "no field 'inputs', but 'input', 'output' (in a suite, --config.tasks.columns.* names the fields)"
    assert words in refused(read_examples, path, Columns())


def test_texts_stored_as_bytes_and_numbers_with_labels_are_texts(tmp_path):
    path = tmp_path / "x.parquet"
    about = {"info": {"features": {"targets": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"inputs": ["é".encode(), b"\xff", b"c"], "targets": [1, 0, -1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    assert refused(read_examples, path, Columns()).startswith(f"{path}, row 2: not valid UTF-8")
    count = []
    rows = list(read_examples(path, Columns(), lambda: count.append(1)))
    assert [(row.inputs, row.targets) for row in rows] == [("é", "yes")] and len(count) == 2
    pq.write_table(table, path)
    assert "'targets' is of type int64, not text" in refused(read_examples, path, Columns())


def test_prompts_may_be_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"inputs": ["a", "b"], "item": [3, 4]}), path)
    assert list(read_prompts(path, Columns())) == [Example("a", "", item="3"), Example("b", "", item="4")]
