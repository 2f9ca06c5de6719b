"""The whole preparation against a plain Python one, and what holds for every log."""

import collections
import datetime
import gzip
import hashlib
import itertools
import json
import os
import pathlib
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stt_jax.config import PrepareConfig, flagfile
from stt_jax.data.preparation import prepare_log
from stt_jax.data.schema import PART_NAMES
from stt_jax.data.store import TEST, TRAIN, UNKNOWN_E7, VALIDATION, open_log
from stt_jax.prepare import GROUPS

ROOT = pathlib.Path(__file__).parents[3]
DATA_ROOT = pathlib.Path(os.environ.get("STT_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA_ROOT.is_dir(), reason=f"no real logs at {DATA_ROOT}; name their folder by STT_DATA"
)
COLUMNS = ("who", "what", "when", "lat", "lon", "kind", "device", "visit")


def random_rows(num_rows, seed):
    """Rows with tied times, repeated rows, missing and impossible places, odd ids."""
    draw = random.Random(seed)
    kinds = {f"p{i}": draw.choice(["bar", "café", "Zoo", ""]) for i in range(30)}
    rows = []
    for _ in range(num_rows):
        item = f"p{int(draw.triangular(0, 30, 2))}"
        rows.append(
            (
                draw.choice(["7", "07", "u10", "u9", "Ü", "a b", ""]),
                item,
                str(1_333_476_000 + 600 * draw.randrange(num_rows // 3)),
                draw.choice(["40.5", "40.7128001", "-91", "", "0"]),
                draw.choice(["-73.25", "-74.0059999", "0"]),
                kinds[item],
                draw.choice(["phone", "web", ""]),
                draw.choice(["s1", "s2", ""]),
            )
        )
    return rows + draw.sample(rows, num_rows // 10)


def write_csv(path, rows, columns=COLUMNS):
    path.write_text("\n".join(",".join(row) for row in [columns, *rows]) + "\n", encoding="utf-8")


def config_for(path, output, **options):
    return PrepareConfig(
        input=(str(path),),
        output=str(output),
        user="who",
        item="what",
        time="when",
        latitude="lat",
        longitude="lon",
        category="kind",
        context=("device",),
        session="visit",
        **options,
    )


def prepare_plainly(rows, test_from, validation_from):
    """The same log by sorting and counting: the definition that the engine must agree with."""
    events, seen = [], set()
    for number, (user, item, time, lat, lon, kind, device, visit) in enumerate(rows):
        place = (UNKNOWN_E7, UNKNOWN_E7)
        if lat and abs(float(lat)) > 90:
            lat, lon = lon, lat
        if lat and (float(lat), float(lon)) != (0, 0):
            place = (round(float(lat) * 1e7), round(float(lon) * 1e7))
        event = (user, item, int(time), place, kind, device, visit)
        if not user or event in seen:
            continue
        seen.add(event)
        part = TEST if int(time) >= test_from else VALIDATION
        events.append((*event, TRAIN if int(time) < validation_from else part, number))
    train = [event for event in events if event[7] == TRAIN]

    def number_values(column):
        counts = collections.Counter(event[column] for event in train if event[column])
        return ["", *sorted(counts, key=lambda value: (-counts[value], value.encode()))]

    trained = {event[0] for event in train}
    users = sorted({event[0] for event in events}, key=lambda u: (u not in trained, u.encode()))
    events.sort(key=lambda event: (users.index(event[0]), event[2], event[8]))
    return events, users, number_values(1), number_values(4), number_values(5)


@pytest.mark.parametrize("seed", [1, 2])
def test_agrees_with_plain_python(tmp_path, seed):
    rows = random_rows(400, seed)
    write_csv(tmp_path / "log.csv", rows)
    log = prepare_log(config_for(tmp_path / "log.csv", tmp_path / "out"))
    statistics = log.meta.statistics
    events, users, items, kinds, devices = prepare_plainly(
        rows, statistics["test_from_s"], statistics["validation_from_s"]
    )
    assert list(log.user_ids) == users
    assert list(log.item_ids) == items
    assert list(log.category_values) == kinds
    assert list(log.context_values["device"]) == devices
    owners = np.repeat(users, np.diff(log.user_offsets))
    assert list(owners) == [event[0] for event in events]
    assert list(log.items) == [items.index(e[1]) if e[1] in items else 0 for e in events]
    assert list(log.times) == [event[2] for event in events]
    places = list(zip(log.latitudes_e7.tolist(), log.longitudes_e7.tolist(), strict=True))
    assert places == [event[3] for event in events]
    assert list(log.contexts["device"]) == [devices.index(event[5]) for event in events]
    assert list(log.parts) == [event[7] for event in events]
    lines = "".join(
        f"{e[0]}\t{e[1]}\t{e[2]}\t{('train', 'validation', 'test')[e[7]]}\n" for e in events
    )
    assert log.meta.split_hash == hashlib.sha256(lines.encode()).hexdigest()
    counts = collections.Counter(event[1] for event in events if event[7] == TRAIN)
    assert list(log.item_train_counts[1:]) == [counts[item] for item in items[1:]]


def test_sizes_of_the_parts_follow_the_fractions(tmp_path):
    write_csv(tmp_path / "log.csv", random_rows(600, 3))
    config = config_for(
        tmp_path / "log.csv", tmp_path / "out", validation_fraction=0.2, test_fraction=0.3
    )
    log = prepare_log(config)
    shares = [np.mean(log.parts == part) for part in (TRAIN, VALIDATION, TEST)]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.01)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_every_byte_is_the_same_on_one_thread_and_on_many(tmp_path):
    # More rows than one engine block holds, so that threads do share the work.
    write_csv(tmp_path / "log.csv", random_rows(130_000, 4))
    written = []
    for threads in (1, 4):
        folder = tmp_path / f"out{len(written)}"
        prepare_log(
            config_for(
                tmp_path / "log.csv", folder, threads=threads, min_user_events=5, min_item_events=5
            )
        )
        written.append(digests(folder))
    assert set(written[0]) == {
        "events.arrow",
        "users.arrow",
        "items.arrow",
        "values.arrow",
        "meta.json",
        "prepare.flags",
        "report.html",
    }
    assert written[0] == written[1]


def test_rows_that_are_parsed_as_they_are_read_are_those_parsed_afterwards(tmp_path):
    write_csv(tmp_path / "log.csv", random_rows(400, 4))
    at_once = config_for(tmp_path / "log.csv", tmp_path / "at_once")
    # A drop by flag comes before the parsing, so that this has to wait; it drops nothing.
    afterwards = config_for(tmp_path / "log.csv", tmp_path / "afterwards", drop_if=("what=none",))
    one, other = prepare_log(at_once), prepare_log(afterwards)
    assert [count.name for count in other.meta.steps if count.name == "drop by flag"]
    assert one.meta.data_hash == other.meta.data_hash
    assert one.meta.split_hash == other.meta.split_hash
    steps = [count for count in other.meta.steps if count.name != "drop by flag"]
    assert list(one.meta.steps) == steps


def test_every_file_format_gives_the_same_log(tmp_path):
    rows = [row for row in random_rows(200, 5) if row[0]]
    table = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    write_csv(tmp_path / "log.csv", rows)
    (tmp_path / "log.tsv.gz").write_bytes(
        gzip.compress("\r\n".join("\t".join(row) for row in [COLUMNS, *rows]).encode())
    )
    typed = table | {
        "when": pa.array([int(text) for text in table["when"]], pa.int64()),
        "lat": pa.array([float(text) if text else None for text in table["lat"]], pa.float64()),
        "lon": pa.array([float(text) for text in table["lon"]], pa.float64()),
    }
    pyarrow.parquet.write_table(pa.table(typed), tmp_path / "log.parquet")
    with gzip.open(tmp_path / "log.jsonl.gz", "wt", encoding="utf-8") as file:
        for row in rows:
            record = dict(zip(COLUMNS, row, strict=True))
            record["when"] = int(record["when"])
            record["lat"] = float(record["lat"]) if record["lat"] else None
            file.write(json.dumps(record) + "\n")
    kinds = dict.fromkeys(COLUMNS, "token") | {"when": "float", "lat": "float", "lon": "float"}
    header = [f"{name}:{kinds[name]}" for name in COLUMNS]
    text = "\n".join("\t".join(row) for row in [header, *rows])
    (tmp_path / "log.inter").write_text(text, encoding="utf-8")
    hashes = {
        name: prepare_log(config_for(tmp_path / name, tmp_path / f"out-{name}")).meta.data_hash
        for name in ("log.csv", "log.tsv.gz", "log.parquet", "log.jsonl.gz", "log.inter")
    }
    assert len(set(hashes.values())) == 1, hashes


def test_counts_of_the_steps_add_up(tmp_path):
    rows = random_rows(500, 6)
    write_csv(tmp_path / "log.csv", rows)
    steps = []
    config = config_for(
        tmp_path / "log.csv", tmp_path / "out", min_user_events=20, min_item_events=8
    )
    log = prepare_log(config, announce=steps.append)
    assert tuple(steps) == log.meta.steps
    assert steps[0].rows_in == len(rows)
    assert steps[-1].rows_out == log.num_events
    for before, after in itertools.pairwise(steps):
        assert after.rows_in == before.rows_out
    for step in steps:
        assert step.rows_in - step.rows_out == sum(step.dropped.values())
    by_name = {step.name: step for step in steps}
    assert by_name["ids"].dropped == {"who is empty": sum(not row[0] for row in rows)}
    assert by_name["places"].changed["latitude and longitude swapped"] > 0


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    )
)
def test_order_is_total_and_stable(tmp_path, events):
    rows = [(user, item, str(10**9 + time)) for user, item, time in events]
    write_csv(tmp_path / "log.csv", rows, ("who", "what", "when"))
    config = PrepareConfig(
        input=(str(tmp_path / "log.csv"),),
        output=str(tmp_path / "out"),
        overwrite=True,
        user="who",
        item="what",
        time="when",
        keep_duplicates=True,
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    log = prepare_log(config)
    wanted = sorted(rows, key=lambda row: (row[0], row[2]))  # sorted() is stable
    assert [log.item_ids[item] for item in log.items] == [row[1] for row in wanted]
    assert [int(row[2]) for row in wanted] == log.times.tolist()


def test_nothing_of_the_test_part_reaches_the_vocabularies(tmp_path):
    rows = [("a", "x", "1000000000"), ("a", "y", "1000000001"), ("b", "x", "1000000002")]
    test_rows = [("c", "new", "1000000009"), ("a", "x", "1000000010")]
    write_csv(tmp_path / "train.csv", rows, ("who", "what", "when"))
    write_csv(tmp_path / "test.csv", test_rows, ("who", "what", "when"))
    log = prepare_log(
        PrepareConfig(
            input=(str(tmp_path / "train.csv"),),
            test_input=(str(tmp_path / "test.csv"),),
            split="given",
            output=str(tmp_path / "out"),
            user="who",
            item="what",
            time="when",
        )
    )
    assert list(log.item_ids) == ["", "x", "y"]
    assert log.item_train_counts.tolist() == [0, 2, 1]
    assert list(log.user_ids) == ["a", "b", "c"]
    assert log.num_train_users == 2
    assert log.items.tolist() == [1, 2, 1, 1, 0]
    assert log.meta.statistics["test_known_events"] == 1
    assert "the validation part is empty" in log.meta.warnings


def test_milliseconds_order_events_within_a_second(tmp_path):
    rows = [("a", "late", "1500000000900"), ("a", "early", "1500000000100")]
    write_csv(tmp_path / "log.csv", rows, ("who", "what", "when"))
    config = PrepareConfig(
        input=(str(tmp_path / "log.csv"),),
        output=str(tmp_path / "out"),
        user="who",
        item="what",
        time="when",
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    log = prepare_log(config)
    assert [log.item_ids[item] for item in log.items] == ["early", "late"]
    assert log.times.tolist() == [1_500_000_000] * 2


def test_the_category_of_an_item_is_its_most_frequent_one(tmp_path):
    rows = [
        ("a", "x", "1000000000", "bar"),
        ("a", "x", "1000000001", "pub"),
        ("b", "x", "1000000002", "pub"),
        ("b", "x", "1000000003", ""),
        ("b", "y", "1000000004", ""),
    ]
    write_csv(tmp_path / "log.csv", rows, ("who", "what", "when", "kind"))
    config = PrepareConfig(
        input=(str(tmp_path / "log.csv"),),
        output=str(tmp_path / "out"),
        user="who",
        item="what",
        time="when",
        category="kind",
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    log = prepare_log(config)
    assert log.category_values == ["", "pub", "bar"]
    assert log.item_categories.tolist() == [0, 1, 0]
    # An event keeps its own category, and has its item's where it has none.
    assert log.categories.tolist() == [2, 1, 1, 1, 0]


def test_overlapping_sessions_and_early_test_events_are_warned_about(tmp_path):
    columns = ("who", "what", "when", "visit")
    rows = [("a", "x", str(10**9 + i), visit) for i, visit in enumerate(["s", "t", "s"])]
    write_csv(tmp_path / "train.csv", rows, columns)
    write_csv(tmp_path / "test.csv", [("a", "x", str(10**9 - 5), "")], columns)
    log = prepare_log(
        PrepareConfig(
            input=(str(tmp_path / "train.csv"),),
            test_input=(str(tmp_path / "test.csv"),),
            split="given",
            output=str(tmp_path / "out"),
            user="who",
            item="what",
            time="when",
            session="visit",
        )
    )
    assert log.sessions.tolist() == [0, 1, 2, 1]
    text = " ".join(log.meta.warnings)
    assert "sessions overlap" in text
    assert "training data may come after test data" in text


def test_stored_flags_prepare_the_same_log_again(tmp_path):
    write_csv(tmp_path / "log.csv", random_rows(200, 7))
    options = {"min_item_events": 2, "drop_if": ("device=a,b", 'device="web"')}
    first = prepare_log(config_for(tmp_path / "log.csv", tmp_path / "one", **options))
    groups = flagfile.parse(
        GROUPS, ["", f"--flagfile={tmp_path / 'one' / 'prepare.flags'}", f"--output={tmp_path}/two"]
    )
    options = {name: value for group in groups.values() for name, value in vars(group).items()}
    second = prepare_log(PrepareConfig(**options))
    assert second.meta == first.meta
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@needs_data
def test_nyc_check_ins_give_the_published_counts(tmp_path):
    folder = DATA_ROOT / "foursquare_nyc_getnext"
    config = PrepareConfig(
        input=(str(folder / "NYC_train_reconstructed.csv.gz"),),
        validation_input=(str(folder / "NYC_val.csv.gz"),),
        test_input=(str(folder / "NYC_test.csv.gz"),),
        split="given",
        output=str(tmp_path / "nyc"),
        item="POI_id",
        time="UTC_time",
        utc_offset_column="timezone",
        latitude="latitude",
        longitude="longitude",
        category="POI_catname",
        session="trajectory_id",
    )
    prepare_log(config)
    log = open_log(tmp_path / "nyc")
    statistics = log.meta.statistics
    parts = [statistics[f"{name}_events"] for name in ("train", "validation", "test")]
    assert parts == [83_410, 10_339, 10_374]
    assert (log.num_users, log.num_train_users, log.num_items) == (1_075, 1_047, 4_974)
    cut = datetime.datetime(2012, 12, 21, 13, 29, 31, tzinfo=datetime.UTC)
    assert statistics["test_first_s"] == int(cut.timestamp())
    row = log.user_row("470")
    first = int(log.user_offsets[row])
    assert log.user_ids[row] == "470"
    assert log.utc_offsets_s[first] == -4 * 3600
    # 1,357 usable targets: last check-in of a test trajectory, user and place known from train.
    test_events = np.flatnonzero(log.parts == TEST)
    last_of_session = {int(log.sessions[event]): int(event) for event in test_events}
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    usable = [e for e in last_of_session.values() if log.items[e] and users[e] < 1_047]
    assert len(usable) == 1_357


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        "nyc",
        "ml100k_cold",
        "gowalla",
        "calgary",
        "online_retail",
        "ml1m",
        "amazon_beauty",
        "amazon_sports",
        "amazon_toys",
    ],
)
def test_real_logs_give_the_counts_that_their_flagfiles_promise(tmp_path, name):
    path = ROOT / "configs" / "prepare" / f"{name}.flags"
    groups = flagfile.parse(
        GROUPS,
        ["", f"--flagfile={path}", f"--data_root={DATA_ROOT}", f"--output={tmp_path / 'out'}"],
    )
    options = {key: value for group in groups.values() for key, value in vars(group).items()}
    log = prepare_log(PrepareConfig(**options))
    comments = " ".join(
        line.removeprefix("# ")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    promised = re.search(r"([\d,]+) / ([\d,]+) / ([\d,]+) events", comments)
    assert [int(text.replace(",", "")) for text in promised.groups()] == [
        log.meta.statistics[f"{part}_events"] for part in PART_NAMES
    ]
    assert f"{log.num_items:,}" in comments
    assert f"{log.num_users:,}" in comments


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        ({"dedupe_window_s": 30.0}, {"duplicates": 1, "near duplicates": 2}),
        ({"dedupe_window_s": 30.0, "keep_duplicates": True}, {"near duplicates": 3}),
        ({}, {"duplicates": 1}),
    ],
)
def test_what_equals_an_event_and_what_is_near_one_leaves_once(tmp_path, options, dropped):
    events = [("a", "x", 0), ("a", "x", 0), ("a", "x", 10), ("a", "x", 100), ("b", "y", 5)]
    events += [("a", "y", 0), ("b", "x", 0), ("b", "y", 7)]
    rows = [(user, item, str(1_600_000_000 + second)) for user, item, second in events]
    write_csv(tmp_path / "log.csv", rows, ("u", "i", "t"))
    config = PrepareConfig(
        input=(str(tmp_path / "log.csv"),),
        output=str(tmp_path / "out"),
        user="u",
        item="i",
        time="t",
        split="time",
        **options,
    )
    log = prepare_log(config)
    found = {step.name: step.rows_in - step.rows_out for step in log.meta.steps}
    assert {name: count for name, count in found.items() if "duplicates" in name} == dropped
    assert log.num_events == len(events) - sum(dropped.values())


@pytest.mark.parametrize(
    "options",
    [
        {"timezone": "America/New_York"},
        {"utc_offset_minutes": -300},
        {"utc_offset_column": "min", "unzoned_times": "local"},
        {"zone_column": "zone"},
    ],
)
def test_the_time_window_is_in_utc_where_times_are_in_local_time(tmp_path, options):
    # One event an hour by New York's clock, which is 5 hours behind: 22:00 is 03:00 of the next day
    # in UTC.
    rows = [
        (f"u{hour % 3}", f"p{hour % 4}", f"2012-01-0{1 + hour // 24} {hour % 24:02d}:00:00")
        for hour in range(48)
    ]
    rows = [(*row, "-300", "America/New_York") for row in rows]
    write_csv(tmp_path / "log.csv", rows, ("u", "i", "t", "min", "zone"))
    config = PrepareConfig(
        input=(str(tmp_path / "log.csv"),),
        output=str(tmp_path / "out"),
        user="u",
        item="i",
        time="t",
        time_from="2012-01-02T03:00Z",
        time_to="2012-01-03T01:00Z",
        **options,
    )
    log = prepare_log(config)
    first, last = (datetime.datetime(2012, 1, *at, tzinfo=datetime.UTC) for at in ((2, 3), (3, 0)))
    assert [int(log.times.min()), int(log.times.max())] == [first.timestamp(), last.timestamp()]
    assert log.num_events == 22


def test_a_field_of_spaces_is_an_empty_one(tmp_path):
    """It is counted where the empty ones are; spaces around a value stay its own."""
    columns = ("who", "what", "when", "lat", "lon", "kind", "device", "visit", "price", "extra")
    tail = ("40.5", "-73.25", "bar", "web", "s", "2", "x ")
    rows = [(f"u{n % 3}", f" p{n % 4}", str(1_333_476_000 + 3600 * n), *tail) for n in range(40)]
    blanks = {0: 0, 1: 1, 2: 2, 3: 5, 4: 6, 5: 8, 6: 9}  # row -> its empty column
    found = []
    for blank in ("", " ", " \t  \x0b"):
        emptied = [
            tuple(blank if blanks.get(n) == i else field for i, field in enumerate(row))
            for n, row in enumerate(rows)
        ]
        emptied[7] = (*emptied[7][:3], blank, blank, *emptied[7][5:])
        write_csv(tmp_path / "log.csv", emptied, columns)
        log = prepare_log(
            config_for(
                tmp_path / "log.csv",
                tmp_path / "out",
                numeric=("price",),
                drop_missing=("extra",),
                drop_if=("extra=",),
                overwrite=True,
            )
        )
        found.append(log.meta)
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert all("u" in name for name in log.user_ids)
    assert log.category_values[1:] == ["bar"]
    assert all(name.startswith(" p") for name in log.item_ids[1:])
    dropped = {reason: n for step in log.meta.steps for reason, n in step.dropped.items()}
    assert dropped == {
        "extra is empty": 1,
        "who is empty": 1,
        "what is empty": 1,
        "time is empty": 1,
    }


def test_a_window_may_begin_and_end_within_a_second(tmp_path):
    rows = [
        (f"u{n % 2}", "p", f"2012-10-12T01:00:0{n}.{tenth}Z", "", "", "", "", "")
        for n in range(5)
        for tenth in (2, 5, 7)
    ]
    write_csv(tmp_path / "log.csv", rows)
    log = prepare_log(
        config_for(
            tmp_path / "log.csv",
            tmp_path / "out",
            time_from="2012-10-12T01:00:01.5",
            time_to="2012-10-12T01:00:03.5",
            split="leave_one_out",
        )
    )
    assert log.num_events == 6
    assert [step.dropped for step in log.meta.steps if step.name == "time window"] == [
        {"before --time_from": 4, "at --time_to or later": 5}
    ]
