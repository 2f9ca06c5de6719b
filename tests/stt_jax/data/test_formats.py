import decimal
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from stt_jax.data import files
from stt_jax.data.files import CountedLines, ReadOptions
from stt_jax.data.formats import as_text, open_file


def read(path, **options):
    """The columns of a file, as name -> list, and the opened file."""
    file = open_file(path, ReadOptions(**options))
    tables = list(file.batches(range(len(file.names))))
    columns = [
        [text for table in tables for text in table.column(i).to_pylist()]
        for i in range(len(file.names))
    ]
    return dict(zip(file.names, columns, strict=True)), file


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "u,i\n007,1.0\nb,\n"),
        ("log.csv.gz", "u,i\n007,1.0\nb,\n"),
        ("gzip_without_suffix.csv", "u,i\n007,1.0\nb,\n"),
        ("log.tsv", "u\ti\n007\t1.0\nb\t\n"),
        ("log.txt", "u;i\r\n007;1.0\r\nb;\r\n"),
        ("log.dat", "u|i\n007|1.0\n\nb|"),
        ("blank_first.csv", "\n\nu,i\n007,1.0\nb,\n"),
        ("bom.csv", "\ufeffu,i\n007,1.0\nb,\n"),
        ("log.inter", "u:token\ti:token\n007\t1.0\nb\t\n"),
        ("log.jsonl", '{"u": "007", "i": "1.0"}\n\n{"u": "b", "i": ""}\n'),
    ],
)
def test_text_is_left_as_it_is(tmp_path, name, text):
    path = write(tmp_path / name, text)
    if name.startswith("gzip"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    columns, file = read(path)
    assert columns == {"u": ["007", "b"], "i": ["1.0", ""]}
    assert file.broken.count == 0


def test_quoted_fields_may_hold_delimiters_quotes_and_line_feeds(tmp_path):
    path = write(tmp_path / "log.csv", 'u,i\na,"x, ""y""\nz"\nb,plain\n')
    assert read(path)[0]["i"] == ['x, "y"\nz', "plain"]


def test_tab_separated_files_do_not_quote(tmp_path):
    path = write(tmp_path / "log.tsv", 'u\ti\na\t"Great" Cats\nb\t"open\nc\tx\n')
    assert read(path)[0]["i"] == ['"Great" Cats', '"open', "x"]


def test_files_without_header_take_names(tmp_path):
    path = write(tmp_path / "log.txt", "a\tx\t5.0\nb\ty\t6.0\n")
    columns, _ = read(path, columns=("user", "item", "time"))
    assert columns == {"user": ["a", "b"], "item": ["x", "y"], "time": ["5.0", "6.0"]}
    with pytest.raises(ValueError, match="has 3 columns, 2 names were given"):
        open_file(path, ReadOptions(columns=("user", "item")))


def test_a_space_or_a_named_delimiter_separates(tmp_path):
    assert read(write(tmp_path / "a.txt", "u i\na x\n"))[0] == {"u": ["a"], "i": ["x"]}
    path = write(tmp_path / "b.txt", "u;i,j\na;x,y\n")
    assert read(path, delimiter="semicolon")[0] == {"u": ["a"], "i,j": ["x,y"]}


def test_only_wanted_columns_are_read_in_the_wanted_order(tmp_path):
    path = write(tmp_path / "log.csv", ",u,u,i\n0,a,b,x\n")
    file = open_file(path, ReadOptions())
    assert file.names == ("", "u", "u", "i")
    (table,) = file.batches([3, 1])
    assert table.to_pydict() == {"3": ["x"], "1": ["a"]}


def test_rows_of_another_length_are_counted(tmp_path):
    path = write(tmp_path / "log.csv", "u,i\na,x\nonly\nb,y,z\nc,w\n")
    columns, file = read(path)
    assert columns["u"] == ["a", "c"]
    assert (file.broken.count, file.broken.first) == (2, "only")


def test_a_stray_quote_loses_no_row_uncounted(tmp_path):
    path = write(tmp_path / "log.csv", 'u,i\na,x\n"b,y\nc,z\nd,w\n')
    columns, file = read(path)
    assert columns["u"] == ["a"]
    assert file.broken.count == 3


@pytest.mark.parametrize(
    ("text", "num_inner_lines"),
    [
        ('u,i,n\na,x,"one\ntwo\n\nthree"\nb,y,four\n', 2),
        ('u,i,n\na,x,"one\nb,y,two\nc,z,three"\nd,w,"fo""ur"', 2),
        ('\n \nu,i,n\r\n\r\na,x,"one\r\ntwo"\r\n\r\nb,y,\r\n\r\n', 1),
        ('u,i,n\ra,x,"one\rtwo"\rb,y,\r', 1),
        ('u,i,n\na,x,n\n"b\n\nc",z\nd,w,5" pipe\n', 0),  # a row too short, but a counted one
        ('u,i,n\na,x,n\n"b,y,n\nc,z,n\n', 0),  # one that never ends
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_inside_quoted_fields_are_counted(tmp_path, text, num_inner_lines, encoding):
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode(encoding))
    file = open_file(path, ReadOptions(encoding=encoding.removesuffix("-sig")))
    for _ in range(2):  # whoever shows a row reads the file again
        list(file.batches([0]))
        assert file.broken.num_inner_lines == num_inner_lines


def test_lines_are_counted_alike_wherever_a_block_ends():
    text = b"skip,me\r\n\r\n\nabc\r\n\ndef\r\rg\n\n\r\nhi"
    for num_bytes in range(9, len(text) + 1):  # a block holds what is skipped
        lines = CountedLines(pa.BufferReader(text), skip_lines=1)
        while len(lines.read_buffer(num_bytes)):
            pass
        assert lines.num_lines == 4


def test_a_header_without_line_end_is_a_file_without_rows(tmp_path):
    assert read(write(tmp_path / "log.csv", "u,i"))[0] == {"u": [], "i": []}


def test_old_line_ends(tmp_path):
    assert read(write(tmp_path / "log.csv", "u,i\ra,x\rb,y\r"))[0]["i"] == ["x", "y"]


def test_undecodable_broken_rows_are_an_error_not_a_message_on_the_side(tmp_path, capsys):
    path = write(tmp_path / "log.csv", "u,i\na,x\né\n", "latin-1")
    with pytest.raises(ValueError, match="--encoding"):
        read(path)
    assert capsys.readouterr().err == ""


def test_latin_1(tmp_path):
    path = write(tmp_path / "log.csv", "u,i\na,café\n", "latin-1")
    assert read(path, encoding="latin-1")[0]["i"] == ["café"]
    with pytest.raises(ValueError, match="--encoding"):
        read(path)


def test_json_numbers_are_ids_as_they_stand(tmp_path):
    rows = '{"u": 7, "i": 13085.0}\n{"u": 9007199254740993, "i": true, "x": [1, {"k": null}]}\n'
    rows += '{"u": 1e3, "i": null}\n{"u": NaN, "i": 0.5}\n'
    columns, _ = read(write(tmp_path / "log.jsonl", rows))
    assert columns["u"] == ["7", "9007199254740993", "1000", None]
    assert columns["i"] == ["13085", "true", None, "0.5"]
    assert json.loads(columns["x"][1]) == ["1", {"k": None}]


def test_lines_that_are_no_json_object_are_counted(tmp_path):
    path = write(tmp_path / "log.jsonl.gz", '{"u": "a"}\n{"u": \n[1]\n{"u": "b"}')
    columns, file = read(path)
    assert columns["u"] == ["a", "b"]
    assert (file.broken.count, file.broken.first) == (2, '{"u":')


@pytest.mark.parametrize(
    ("text", "words"),
    [('[{"u": 1}]', "JSON array"), ("u,i\n1,2\n", "has no line with a JSON object")],
)
def test_other_json_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        open_file(write(tmp_path / "log.jsonl", text), ReadOptions())


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"u": 1, "i": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"u": "\\ud800", "i": "x"}',
        '{"u": 1, "i": [{"\\uDFFFx": 2}]}',
    ],
)
def test_json_that_is_no_text_or_nested_too_deeply_is_a_broken_row(tmp_path, line):
    text = '{"u": "\\ud83d\\ude00", "i": "\\\\ud800"}\n'
    columns, file = read(write(tmp_path / "log.jsonl", f"{text}{line}\n{text}"))
    assert columns == {"u": ["😀"] * 2, "i": ["\\ud800"] * 2}
    assert (file.broken.count, file.broken.first) == (1, line[:80])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_json_lines_and_sequences_of_other_encodings(tmp_path, encoding):
    # In UTF-16 the letter U+0A0A is two bytes that are each a line feed.
    path = tmp_path / "log.jsonl"
    path.write_bytes('{"u": "\u0a0a", "i": "é"}\n\n{"u": "b", "i": "y"}'.encode(encoding))
    assert read(path, encoding=encoding)[0] == {"u": ["\u0a0a", "b"], "i": ["é", "y"]}
    path.write_bytes("a \u0a0a y\nb x\n".encode(encoding))
    columns, _ = read(path, encoding=encoding, format="sequences")
    assert columns == {"user": ["a", "a", "b"], "item": ["\u0a0a", "y", "x"]}


def test_a_line_may_end_anywhere_in_a_block(tmp_path, monkeypatch):
    path = write(tmp_path / "log.txt", "é1\n2\n\n 3é\n4")
    for num_bytes in range(1, 16):
        monkeypatch.setattr(files, "_READ_BYTES", num_bytes)
        assert list(files.text_lines(path, "utf-8")) == ["é1", "2", "3é", "4"]
    path.write_bytes(b"a\n\xc3")
    with pytest.raises(UnicodeDecodeError):
        list(files.text_lines(path, "utf-8"))


def test_sequences_are_unrolled(tmp_path):
    path = write(tmp_path / "log.txt.gz", "1 5 6 5\n\n2 7\n3\n1 8\n")
    columns, file = read(path, format="sequences")
    assert columns == {"user": ["1", "1", "1", "2", "1"], "item": ["5", "6", "5", "7", "8"]}
    assert (file.broken.count, file.broken.first) == (1, "3")


def test_recbole_headers_need_types(tmp_path):
    with pytest.raises(ValueError, match="lacks types"):
        open_file(write(tmp_path / "log.inter", "user_id\titem_id\n1\t2\n"), ReadOptions())


def test_parquet_columns_become_text(tmp_path):
    table = pa.table(
        {
            "customer": pa.array([13085.0, None, float("nan")]),
            "narrow": pa.array([1, 2, 3], pa.int16()),
            "big": pa.array([2**60 + 1, 0, -1]),
            "price": [6.95, 1e20, 0.1],
            "single": pa.array([0.1, 40.5, 1 / 3], pa.float32()),
            "exact": pa.array([decimal.Decimal("7.00"), decimal.Decimal("7.50"), None]),
            "when": pa.array([0, 1, 2], pa.timestamp("ms", "UTC")),
            "local": pa.array([0, 1, 2], pa.timestamp("s")),
            "day": pa.array([0, 1, 2], pa.date32()),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "flag": [True, False, None],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    columns, _ = read(tmp_path / "log.parquet")
    assert columns == {
        "customer": ["13085", None, None],
        "narrow": ["1", "2", "3"],
        "big": [str(2**60 + 1), "0", "-1"],
        "price": ["6.95", "1e+20", "0.1"],
        "single": ["0.1", "40.5", "0.33333334"],
        "exact": ["7", "7.50", None],
        "when": [f"1970-01-01 00:00:00.00{i}Z" for i in range(3)],
        "local": [f"1970-01-01 00:00:0{i}.000" for i in range(3)],
        "day": ["1970-01-01", "1970-01-02", "1970-01-03"],
        "kind": ["a", "b", "a"],
        "flag": ["true", "false", None],
    }


def test_shortest_float_texts_read_back_the_same():
    values = np.random.default_rng(1).normal(scale=100, size=1_000)
    assert [float(text) for text in as_text(pa.array(values), "x").to_pylist()] == values.tolist()


def test_nested_columns_are_refused(tmp_path):
    pyarrow.parquet.write_table(pa.table({"u": [[1], [2]]}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="column 'u' is nested"):
        read(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.parquet", b"PAR1 not at all", "a.parquet: "),
        ("a.csv", b"", r"a.csv is empty \(0 bytes\)"),
        ("a.csv", b"\n \n", "a.csv is empty: it has no line with text"),
        ("a.csv.gz", gzip.compress(b"u,i\n1,2\n" * 99, mtime=0)[:20], "cut off or damaged"),
        ("a.csv.gz", b"\x1f\x8bnonsense that is not gzip", "cut off or damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / name)


def test_a_folder_and_superfluous_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        open_file(tmp_path, ReadOptions())
    path = write(tmp_path / "log.jsonl", '{"u": 1}')
    with pytest.raises(ValueError, match="names its columns itself"):
        open_file(path, ReadOptions(columns=("u",)))
