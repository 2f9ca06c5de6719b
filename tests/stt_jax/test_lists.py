"""Many requests at once are answered as each alone, and what cannot be answered is counted."""

import math

import pyarrow.csv
import pyarrow.parquet
import pytest

from stt_jax import lists, recommend, recommender
from stt_jax.config import ListsConfig, RequestConfig
from stt_jax.data.store import open_log
from stt_jax.recommender import Recommender
from stt_jax.training.run import load_run
from tests.stt_jax.service.served import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose six people have 1 to 40 events; the model sees the last 16."""
    return write_run(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def one_by_one(run):
    """How a request is answered alone."""
    log = open_log(run.parent / "prepared")
    loaded = Recommender(load_run(run, log), log)
    return lambda **options: loaded.recommend([RequestConfig(**options)])[0]


@pytest.fixture(params=[1, 2, 64], ids="{} a batch".format)
def batches(request, monkeypatch):
    for module in (recommender, lists):
        monkeypatch.setattr(module, "BATCH_PEOPLE", request.param)


def call(run, output, *flags):
    return recommend.main(["recommend", f"--run={run}", f"--output={output}", *flags])


def read(path):
    """Rows by request, in the order of the file."""
    by_request = {}
    for row in pyarrow.parquet.read_table(path).to_pylist():
        by_request.setdefault(row["request"], []).append(row)
    return by_request


def check_same(rows, expected):
    assert [row["rank"] for row in rows] == list(range(1, len(expected) + 1))
    for row, one in zip(rows, expected, strict=True):
        assert (row["item"], row["name"], row["category"]) == (
            one.item_id,
            one.name,
            one.category,
        )
        assert row["probability"] == pytest.approx(one.probability, abs=1e-6)
        assert row["distance_km"] == pytest.approx(one.distance_km)


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"time": "2012-04-20T08:30"},
        {"exclude_seen": "true"},
        {"max_per_category": "1"},
        {"diversity": "0.5"},
        {"radius_km": "0.2", "latitude": "40.7", "longitude": "-74"},
    ],
    ids=str,
)
def test_everybody_gets_the_list_that_they_get_alone(run, one_by_one, tmp_path, capsys, rules):
    output = tmp_path / "new" / "lists.parquet"
    flags = [f"--{name}={value}" for name, value in rules.items()]
    assert call(run, output, "--requests=all", "--k=4", *flags) == 0, capsys.readouterr().err
    log = open_log(run.parent / "prepared")
    found = read(output)
    numbers = {"max_per_category": int, "diversity": float, "radius_km": float}
    options = {name: numbers.get(name, str)(value) for name, value in rules.items()}
    num_short = 0
    for number, user in enumerate(log.user_ids, start=1):
        expected = one_by_one(user=user, k=4, **options)
        num_short += len(expected) < 4
        check_same(found.get(number, []), expected)
        assert {row["user"] for row in found.get(number, [])} <= {user}
    places = sum(map(len, found.values()))
    assert capsys.readouterr().out == (
        f"{output}: {places:,} places of 6 lists, {num_short:,} of which have fewer than 4 items\n"
    )
    assert list(output.parent.iterdir()) == [output]


def test_requests_of_different_rules_are_answered_together(run):
    log = open_log(run.parent / "prepared")
    loaded = Recommender(load_run(run, log), log)
    requests = [
        RequestConfig(user="u1", k=2),
        RequestConfig(user="u2", k=11, exclude_seen="true"),
        RequestConfig(k=4, max_per_category=1),
        RequestConfig(user="u4", k=3, categories=("a", "b")),
    ]
    for found, request in zip(loaded.recommend(requests), requests, strict=True):
        (alone,) = loaded.recommend([request])
        assert [one.item_id for one in found] == [one.item_id for one in alone]
        assert [one.probability for one in found] == pytest.approx(
            [one.probability for one in alone], abs=1e-6
        )
    assert loaded.recommend([]) == []


@pytest.mark.usefixtures("batches")
def test_a_row_says_who_when_and_where_and_what_it_leaves_open_is_as_the_flags_say(
    run, one_by_one, tmp_path
):
    table = tmp_path / "requests.csv"
    table.write_text(
        "why,user,longitude,time,latitude\n"
        "a,u2,,2012-04-20T08:30,\n"
        "b,u2,-74.001,,40.701\n"
        "c, u4 ,,,\n"
        "d,,,,\n"
    )
    output = tmp_path / "lists.csv"
    flags = ("--time=2012-05-01T20:30", "--k=3", f"--requests={table}")
    assert call(run, output, *flags) == 0
    rows = pyarrow.csv.read_csv(output).to_pylist()
    late = {"time": "2012-05-01T20:30", "k": 3}
    expected = [
        one_by_one(user="u2", time="2012-04-20T08:30", k=3),
        one_by_one(user="u2", latitude="40.701", longitude="-74.001", **late),
        one_by_one(user="u4", **late),
        one_by_one(user="", **late),
    ]
    for number, one in enumerate(expected, start=1):
        check_same([row for row in rows if row["request"] == number], one)
    assert len({rows[0]["probability"], rows[3]["probability"], rows[6]["probability"]}) == 3


@pytest.mark.usefixtures("batches")
def test_requests_that_are_wrong_are_counted_and_named_and_the_others_answered(
    run, one_by_one, tmp_path, capsys
):
    table = tmp_path / "requests.csv"
    table.write_text(
        "user,time,latitude,longitude\nu1,yesterday,,\nu99,,,\nu1,,91,0\nu1,,41,\nu5,,,\n"
    )
    output = tmp_path / "lists.parquet"
    assert call(run, output, f"--requests={table}", "--k=2") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("2 places of 1 lists, 0 of which have fewer than 2 items")
    assert out[1] == "4 of 5 requests got no list, such as"
    assert out[2].startswith("  request 1: --time=yesterday is no ISO 8601 time")
    assert out[3].startswith("  request 2: user 'u99' is not in")
    assert out[4].startswith("  request 3: --latitude=91 must be degrees between -90 and 90")
    assert len(out) == 5
    check_same(read(output)[5], one_by_one(user="u5", k=2))


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("person\nu1\n", (), "has no column 'user'; its columns are person"),
        ("user\n", (), "has no rows; write one request a row"),
        ("user,time\nu1\n", (), "1 rows do not have its 2 columns, the first is 'u1'"),
        ("user\nu99\nu98\n", (), "no list was made; request 1: user 'u99' is not in"),
        ("user\nu1\n", ("--user=u1",), "--user and --traits are of one person"),
        ("user\nu1\n", ("--traits=age=3",), "--user and --traits are of one person"),
        ("user\nu1\n", ("--output=lists.txt",), "--output=lists.txt must end in .parquet or .csv"),
        ("user\nu1\n", ("--output=",), "--requests and --output go together"),
        ("user\nu1\n", ("--categories=none",), "--categories: 'none' is not in the model's log"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_the_old_lists(
    run, tmp_path, capsys, text, flags, message
):
    table = tmp_path / "requests.csv"
    table.write_text(text)
    output = tmp_path / "lists.csv"
    output.write_text("of yesterday")
    assert call(run, output, f"--requests={table}", *flags) == 2
    assert message in capsys.readouterr().err
    assert output.read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.csv", "requests.csv"]


def test_a_stop_half_way_leaves_nothing(run, tmp_path, monkeypatch):
    def stop(self, asked):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recommender, "answer", stop)
    assert call(run, tmp_path / "lists.parquet", "--requests=all") == 130
    assert list(tmp_path.iterdir()) == []


def test_many_rows_are_written_in_pieces(run, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "_PIECE", 5)
    output = tmp_path / "lists.parquet"
    assert call(run, output, "--requests=all", "--k=3") == 0
    rows = pyarrow.parquet.read_table(output).to_pylist()
    assert [(row["request"], row["rank"]) for row in rows] == [
        (number, rank) for number in range(1, 7) for rank in (1, 2, 3)
    ]
    assert pyarrow.parquet.ParquetFile(output).num_row_groups > 1
    assert not any(math.isnan(row["probability"]) for row in rows)


def test_without_a_terminal_a_line_tells_how_far_it_is(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lists, "_LINE_EVERY_S", -1.0)
    monkeypatch.setattr(lists, "BATCH_PEOPLE", 4)
    assert call(run, tmp_path / "lists.csv", "--requests=all") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.endswith("requests")] == [
        "4 of 6 requests",
        "6 of 6 requests",
    ]


def test_pseudonyms_need_no_key_for_everybody(run, tmp_path):
    """Nothing is looked up by a raw id."""
    config = ListsConfig(requests="all", output=str(tmp_path / "lists.csv"))
    log = open_log(run.parent / "prepared")
    counts = lists.write_lists(
        Recommender(load_run(run, log), log), log, RequestConfig(key_file="nowhere"), config
    )
    assert (counts.requests, counts.refused) == (6, 0)
