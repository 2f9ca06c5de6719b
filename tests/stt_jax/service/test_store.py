"""The event log loses nothing and stores nothing twice, on SQLite and on PostgreSQL."""

import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from stt_jax.service.store import EventStore, StoredEvent, StoreError, Version, content_id
from tests.stt_jax.service.databases import postgres
from tests.stt_jax.service.served import together

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server():
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/events.db"
        return
    url = request.getfixturevalue("server")
    store = EventStore(url)
    store._engine.dispose()
    yield url
    store = EventStore(url)
    with store._engine.begin() as connection:
        for table in ("events", "people", "meta"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    store.close()


@pytest.fixture
def store(url):
    store = EventStore(url)
    yield store
    store.close()


def event(user, number, time_s=0, **more):
    return StoredEvent(user, f"e{number}", f"item {number}", time_s, **more)


def test_events_come_back_in_the_order_of_time_and_ties_as_they_came(store):
    full = event("a", 1, 50, utc_offset_s=-3600, latitude_e7=-5, longitude_e7=7, category="c")
    full = StoredEvent(
        **{**full.__dict__, "contexts": {"device": "phone"}, "numbers": {"price": 0.1, "n": -1e300}}
    )
    store.add([full, event("b", 1, 1)])
    store.add([event("a", 2, 20), event("a", 3, 50), event("a", 4, 50)])
    assert store.read(["a", "b", "c"]) == {
        "a": [event("a", 2, 20), full, event("a", 3, 50), event("a", 4, 50)],
        "b": [event("b", 1, 1)],
        "c": [],
    }


def test_a_log_of_before_numbers_gets_a_column_for_them(url):
    store = EventStore(url)
    store.add([event("a", 1)])
    with store._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE events DROP COLUMN numbers")
    store.close()
    stores = [EventStore(url), EventStore(url)]
    priced = event("a", 2, 1, numbers={"price": 3.5})
    stores[1].add([priced])
    assert stores[0].read(["a"])["a"] == [event("a", 1), priced]
    # A service of before still writes to it.
    with stores[0]._engine.begin() as connection:
        connection.exec_driver_sql(
            'INSERT INTO events ("user", event_id, item, time_s, contexts) '
            "VALUES ('a', 'e3', 'item 3', 2, '{}')"
        )
    assert stores[0].read(["a"])["a"][-1] == event("a", 3, 2)
    for one in stores:
        one.close()


def test_an_event_without_numbers_keeps_the_id_that_it_had_before_there_were_any():
    one = StoredEvent("a", "", "i1", 7, None, 5, 6, "c", {"device": "phone"})
    assert content_id(one) == (
        "sha256:468eca85185c5cf3d4869d397709b3b57e23094fc762ad0be5259bcf08644e7f"
    )
    ids = {content_id(StoredEvent(**{**one.__dict__, "numbers": {"n": n}})) for n in (1.0, 2.0)}
    assert len(ids | {content_id(one)}) == 3


def test_an_id_is_stored_once_for_a_person(store):
    first = event("a", 1)
    assert store.add([first, first, event("b", 1)]) == {("a", "e1"), ("b", "e1")}
    again = StoredEvent("a", "e1", "another item", 9)
    assert store.add([again, event("a", 2)]) == {("a", "e2")}
    assert store.read(["a"])["a"] == [first, event("a", 2)]


def test_versions_rise_with_writes_and_forgetting_leaves_no_event(store):
    assert store.versions(["a", "b"]) == {"a": Version(), "b": Version()}
    store.add([event("a", 1), event("a", 2)])
    first = store.versions(["a", "b"])
    assert first["b"] == Version()
    assert first["a"].number > 0
    store.add([event("b", 1)])
    assert store.versions(["a"])["a"] == first["a"]
    assert store.forget("a") == 2
    after = store.versions(["a"])["a"]
    assert after.forgotten
    assert after.number > first["a"].number
    assert store.read(["a", "b"])["a"] == []
    assert len(store.read(["b"])["b"]) == 1
    store.add([event("a", 1)])
    assert store.versions(["a"])["a"].forgotten


def test_two_services_may_write_the_same_events_at_once(url):
    stores = [EventStore(url), EventStore(url)]
    batches = [[event(f"u{i % 3}", j) for i in range(6) for j in range(5)] for _ in range(8)]
    new = together(
        [lambda i=i: stores[i % 2].add(batches[i]) for i in range(len(batches))]
    )  # fmt: skip
    assert sum(len(keys) for keys in new) == 15
    events = stores[0].read(["u0", "u1", "u2"])
    assert all(
        sorted(e.event_id for e in mine) == [f"e{i}" for i in range(5)] for mine in events.values()
    )
    assert stores[0].versions(["u0"]) == stores[1].versions(["u0"])
    for one in stores:
        one.close()


_WRITER = """
    import itertools, sys
    from stt_jax.service.store import EventStore, StoredEvent
    store = EventStore(sys.argv[1])
    for number in itertools.count(int(sys.argv[2])):
        user = f"u{number % 5}"
        store.add([StoredEvent(user, f"{number}.{part}", "i", number) for part in (0, 1)])
        print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kills(url):
    acknowledged, first = set(), 0
    num_kills = 10 if url.startswith("sqlite") else 3
    for _ in range(num_kills):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WRITER), url, str(first)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        ) as writer:
            for line in writer.stdout:
                if line.endswith("\n"):  # what came before the kill, whole
                    acknowledged.add(int(line))
                if len(acknowledged) % 7 == 0:
                    writer.send_signal(signal.SIGKILL)
        first = max(acknowledged) + 1
    store = EventStore(url)
    events = [e for mine in store.read([f"u{i}" for i in range(5)]).values() for e in mine]
    store.close()
    ids = [e.event_id for e in events]
    assert len(ids) == len(set(ids))
    assert len(acknowledged) >= 7 * num_kills
    assert {f"{number}.{part}" for number in acknowledged for part in (0, 1)} <= set(ids)
    # Half a batch is never there.
    assert all({f"{i.split('.')[0]}.0", f"{i.split('.')[0]}.1"} <= set(ids) for i in ids)


def _is_left(folder):
    """Whether anything of what the next two tests forget is in a file."""
    files = b"".join(file.read_bytes() for file in folder.iterdir())
    return b"somebody-very-special" in files or b"a-telling-item" in files


def _special_events():
    return [StoredEvent("somebody-very-special", f"id{i}", "a-telling-item", i) for i in range(50)]


def test_nothing_of_a_forgotten_person_is_left_in_the_files_of_a_store_in_use(tmp_path):
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    store.add([event("somebody else", 1), *_special_events()])
    assert _is_left(tmp_path)
    assert store.forget("somebody-very-special") == 50
    assert not _is_left(tmp_path)
    store.add([event("somebody else", 2)])
    assert not _is_left(tmp_path)
    store.close()
    assert not _is_left(tmp_path)


def test_what_a_reader_keeps_from_being_overwritten_is_overwritten_later(tmp_path):
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    store.add(_special_events())
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        assert store.forget("somebody-very-special") == 50
        assert _is_left(tmp_path)
    store.erase_forgotten()
    assert not _is_left(tmp_path)
    store.close()


def test_a_damaged_file_is_refused_with_advice(tmp_path):
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    for part in range(20):
        store.add([event("a", 100 * part + i) for i in range(100)])
    store.close()
    data = bytearray(path.read_bytes())
    for page in range(5, len(data) // 4096, 3):
        data[4096 * page : 4096 * page + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"cannot be opened.*restore a copy"):
        EventStore(f"sqlite:///{path}")
    path.write_bytes(b"this is no database, whatever it may be" * 500)
    with pytest.raises(StoreError, match=r"not a database.*restore a copy"):
        EventStore(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="cannot be opened"):
        EventStore(f"sqlite:///{tmp_path}/nowhere/events.db")


def test_a_full_disk_refuses_new_events_and_keeps_the_old(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = EventStore(f"sqlite:///{folder}/events.db")
        stored = set()

        def fill():
            for part in range(1000):
                stored.update(store.add([event("a", 100 * part + i) for i in range(100)]))

        with pytest.raises(StoreError, match="not stored"):
            fill()
        there = {("a", one.event_id) for one in store.read(["a"])["a"]}
        assert there == stored
        store.close()
        store = EventStore(f"sqlite:///{folder}/events.db")
        assert len(store.read(["a"])["a"]) == len(stored) > 100
        store.close()
    finally:
        subprocess.run(["umount", folder], check=True)
