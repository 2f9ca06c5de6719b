"""Five hundred broken files: each is read with counts or refused in one clear line."""

import gzip
import itertools
import random

import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data.engine import DuckEngine
from stt_jax.data.preparation import prepare_log
from stt_jax.data.read import read_log

NAMES = ["user_id", "item_id", "time", "lat", "lon", "note"]
NUM_FILES = 500


def rows_of(draw):
    return [
        [
            f"u{draw.randrange(4)}",
            f"p{draw.randrange(5)}",
            f"2012-04-{1 + i % 28:02d}T10:{i % 60:02d}:00Z",
            "40.7",
            "-74.0",
            draw.choice(["", "fine", "a b", "café"]),
        ]
        for i in range(draw.randrange(1, 40))
    ]


def table(rows, *, names=NAMES, delimiter=",", end="\n"):
    return end.join(delimiter.join(row) for row in [names, *rows]) + end


def put_in(draw, text, what):
    at = draw.randrange(len(text) + 1)
    return text[:at] + what + text[at:]


def mixed_times(draw, rows):
    for row in draw.sample(rows, 1 + len(rows) // 3):
        row[2] = draw.choice(
            ["1333476000", "2012-04-03", "03/04/2012", "soon", "", "1e400", "-5", "9" * 30]
        )
    return table(rows).encode()


def odd_values(draw, rows):
    for row in draw.sample(rows, 1 + len(rows) // 2):
        row[draw.randrange(6)] = draw.choice(
            ["", " ", "nan", "inf", "-inf", "1e999", "91", "-181", "0", "NULL", "'; DROP TABLE log"]
        )
    return table(rows).encode()


def wrong_columns(draw, rows):
    kind = draw.randrange(4)
    if kind == 0:
        return table([row[: draw.randrange(1, 6)] for row in rows]).encode()
    if kind == 1:
        return table([row + ["more"] * draw.randrange(3) for row in rows]).encode()
    if kind == 2:
        return table(rows, names=draw.sample(NAMES, 6)).encode()
    return table(
        rows, names=[draw.choice([name, name.upper(), "", "x"]) for name in NAMES]
    ).encode()


def quotes(draw, rows):
    text = table(rows)
    for _ in range(draw.randrange(1, 4)):
        text = put_in(draw, text, draw.choice(['"', '""', '"x', ',"', '",', "'"]))
    return text.encode()


BREAKS = {
    "plain": lambda draw, rows: table(rows).encode(),
    "mixed times": mixed_times,
    "odd values": odd_values,
    "wrong columns": wrong_columns,
    "quotes": quotes,
    "latin-1": lambda draw, rows: put_in(draw, table(rows), "é").encode("latin-1"),
    "utf-16": lambda draw, rows: table(rows).encode("utf-16"),
    "NUL bytes": lambda draw, rows: put_in(draw, table(rows), "\0" * draw.randrange(1, 9)).encode(),
    "byte order mark": lambda draw, rows: b"\xef\xbb\xbf" + table(rows).encode(),
    "CRLF": lambda draw, rows: table(rows, end=draw.choice(["\r\n", "\r", "\n\n"])).encode(),
    "delimiters": lambda draw, rows: table(rows, delimiter=draw.choice("\t;| ~")).encode(),
    "huge field": lambda draw, rows: put_in(draw, table(rows), "x" * 300_000).encode(),
    "cut gzip": lambda draw, rows: cut(draw, gzip.compress(table(rows * 9).encode(), mtime=0)),
    "cut text": lambda draw, rows: cut(draw, table(rows).encode()),
    "flipped bytes": lambda draw, rows: flip(draw, table(rows).encode()),
    "flipped gzip": lambda draw, rows: flip(draw, gzip.compress(table(rows).encode(), mtime=0)),
    "JSON": lambda draw, rows: put_in(
        draw, '{"user_id": 1, "item_id": [2], "time": 3}\n' * 3, "}"
    ).encode(),
    "noise": lambda draw, rows: draw.randbytes(draw.randrange(0, 400)),
}


def cut(draw, content):
    return content[: draw.randrange(len(content))]


def flip(draw, content):
    broken = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        broken[draw.randrange(len(broken))] = draw.randrange(256)
    return bytes(broken)


def config_of(paths, output, **options):
    return PrepareConfig(
        input=tuple(map(str, paths)),
        output=str(output),
        time="time",
        time_format="iso",
        latitude="lat",
        longitude="lon",
        max_broken_fraction=1.0,
        threads=1,
        **options,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(kind, path, rows in and out, or the error) of every file."""
    folder = tmp_path_factory.mktemp("broken")
    draw, found = random.Random(20), []
    engine = DuckEngine(str(folder / "spill"), threads=1)
    for number in range(NUM_FILES):
        kind = list(BREAKS)[number % len(BREAKS)]
        suffix = {"JSON": ".jsonl", "noise": (".csv", ".tsv", ".jsonl")[number % 3]}
        path = folder / f"{number}{suffix.get(kind, '.csv')}"
        path.write_bytes(BREAKS[kind](draw, rows_of(draw)))
        try:
            raw = read_log(config_of([path], folder / "out"), engine)
            found.append((kind, path, raw.counts[0], None))
        except (ValueError, OSError) as error:
            found.append((kind, path, None, error))
        engine.connection.raw_sql("DROP TABLE IF EXISTS log")
    engine.close()
    return found


def test_each_file_is_read_with_counts_or_refused_by_name(outcomes):
    assert len(outcomes) == NUM_FILES
    for kind, path, count, error in outcomes:
        if error is not None:
            assert path.name in str(error), (kind, error)
            continue
        assert count.rows_in >= count.rows_out > 0, kind
        assert count.rows_in - count.rows_out == sum(count.dropped.values()), kind
    refused = {kind for kind, _, _, error in outcomes if error is not None}
    read = {kind for kind, _, _, error in outcomes if error is None}
    assert {"latin-1", "utf-16", "cut gzip", "noise"} <= refused
    assert {"plain", "odd values", "byte order mark", "CRLF", "quotes"} <= read
    assert "plain" not in refused
    assert "byte order mark" not in refused


def test_no_row_is_lost_without_a_count(outcomes):
    """What a plain file holds comes out; what a cut file lacks at most its last row."""
    draw = random.Random(20)
    for number, (kind, _, count, _) in enumerate(outcomes):
        rows = rows_of(draw)
        if kind in ("plain", "byte order mark", "odd values", "mixed times") and count:
            assert count.rows_in == len(rows), (number, kind)
        BREAKS[kind](draw, rows)  # draws what the file drew, to come to the rows of the next one


def test_all_that_can_be_read_is_prepared_in_one_run(outcomes, tmp_path):
    paths = [path for _, path, _, error in outcomes if error is None]
    steps = []
    log = prepare_log(config_of(paths, tmp_path / "out"), announce=steps.append)
    num_read = len(paths)
    assert sum(step.rows_out for step in steps[:num_read]) == steps[num_read].rows_in
    for before, after in zip(steps[num_read:-1], steps[num_read + 1 :], strict=True):
        assert after.rows_in == before.rows_out
    for step in steps:
        assert step.rows_in - step.rows_out == sum(step.dropped.values())
    assert steps[-1].rows_out == log.num_events > 500


def pytest_generate_tests(metafunc):
    if "number" in metafunc.fixturenames:
        # Drawn, so that few files meet many kinds; all of them take ten minutes.
        count = metafunc.config.getoption("broken_files")
        metafunc.parametrize("number", sorted(random.Random(3).sample(range(NUM_FILES), count)))


def test_one_broken_file_alone_ends_in_a_log_or_in_one_line(tmp_path, number):
    draw = random.Random(number)
    kind = list(BREAKS)[number % len(BREAKS)]
    path = tmp_path / "log.csv"
    path.write_bytes(BREAKS[kind](draw, rows_of(draw)))
    steps, refusal, num_events = [], None, 0
    try:
        log = prepare_log(
            config_of([path], tmp_path / "out", split="leave_one_out"), announce=steps.append
        )
        num_events = log.num_events
    except (ValueError, OSError) as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal, kind
        assert "\n" not in refusal, kind
        return
    assert num_events == steps[-1].rows_out > 0
    for before, after in itertools.pairwise(steps):
        assert after.rows_in == before.rows_out
    for step in steps:
        assert step.rows_in - step.rows_out == sum(step.dropped.values())


def test_a_field_of_ten_megabytes_is_read(tmp_path):
    path = tmp_path / "log.csv"
    rows = rows_of(random.Random(1))
    path.write_text(table([*rows, ["u9", "p9", rows[0][2], "1", "1", "x" * 10_000_000]]))
    log = prepare_log(config_of([path], tmp_path / "out", split="leave_one_out"))
    assert "u9" in list(log.user_ids)
    named = config_of([path], tmp_path / "named", split="leave_one_out", name="note")
    assert max(map(len, prepare_log(named).item_names)) == 10_000_000
