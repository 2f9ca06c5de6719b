"""What is popular now, as the service counts it."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
import sqlalchemy as sa

from stt_jax.data.prepared_log import TIME_GRID
from stt_jax.data.store import open_log
from stt_jax.service import store as store_module
from stt_jax.service.models import load_model
from stt_jax.service.people import LiveTable
from stt_jax.service.service import Service
from stt_jax.service.store import EventStore, StoredEvent, StoreError
from stt_jax.service.trending import Trending
from stt_jax.successions import LiveSuccessions
from stt_jax.trends import LiveTrends
from tests.stt_jax.service.served import MODEL, config, serving, write_run

MONDAY = 1_333_324_800
DAY_S = 86_400
AFTER = MONDAY + 400 * DAY_S  # the log has ended long before


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = dataclasses.replace(
        MODEL,
        trend_half_lives_h=(2.0, 24.0),
        trend_step_min=20,
        succession_half_lives_h=(0.5,),
    )
    return write_run(tmp_path_factory.mktemp("served"), model)


@pytest.fixture(scope="module")
def served(run):
    return load_model(run, "")


@pytest.fixture
def store(tmp_path):
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    yield store
    store.close()


def stored(user, item, time_s):
    return StoredEvent(user, f"{user} {item} {time_s}", item, time_s)


def assert_counted(trending, log, events):
    """That nothing but the log and these (item id, time) was counted."""
    expected = LiveTrends(log, (2.0, 24.0), 20)
    rows = {item: row for row, item in enumerate(log.item_ids)}
    items = np.array([rows[item] for item, _ in events], np.int32)
    expected.add(items, np.array([time_s // 60 for _, time_s in events]))
    found = trending._trends.trends()
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected.trends()), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_what_came_is_counted_once(served, store):
    trending, log = Trending(served, store), served.log
    assert trending.refresh() is None
    first = [stored("new", log.item_ids[1], AFTER), stored("u0", log.item_ids[2], AFTER + 3700)]
    store.add([*first, stored("new", "unheard of", AFTER), stored("u0", log.item_ids[3], 2**40)])
    assert trending.refresh() is not None
    assert trending.refresh() is None
    second = [stored("new", log.item_ids[2], AFTER + 7 * DAY_S)]
    store.add([*first, *second])
    assert trending.refresh() is not None
    assert_counted(trending, log, [(event.item, event.time_s) for event in [*first, *second]])


def test_what_the_prepared_log_holds_is_not_counted_again(served, store):
    log = served.log
    there = np.flatnonzero(log.items)[20]
    user = np.searchsorted(log.user_offsets, there, side="right") - 1
    item, time_s = log.item_ids[log.items[there]], int(log.times[there])
    trending = Trending(served, store)
    store.add([stored(log.user_ids[user], item, time_s), stored("new", item, time_s)])
    trending.refresh()
    assert_counted(trending, log, [(item, time_s)])


def test_what_a_coarse_log_holds_is_not_counted_again(served, store):
    log, grid_s = served.log, 3600
    statistics = log.meta.statistics | {TIME_GRID: grid_s}
    coarse = dataclasses.replace(
        log,
        times=log.times // grid_s * grid_s,
        meta=dataclasses.replace(log.meta, statistics=statistics),
    )
    there = np.flatnonzero(log.items[: log.user_offsets[1]])[5]
    item, time_s = log.item_ids[log.items[there]], int(log.times[there])
    assert time_s % grid_s
    trending = Trending(dataclasses.replace(served, log=coarse), store)
    store.add([stored("u0", item, time_s), stored("new", item, time_s)])
    trending.refresh()
    assert_counted(trending, coarse, [(item, time_s)])


def test_what_somebody_does_next_follows_what_they_did_last(served, store, monkeypatch):
    monkeypatch.setattr("stt_jax.service.trending.now_s", lambda: AFTER + 600)
    trending, log = Trending(served, store), served.log
    user = int(np.flatnonzero(log.items[log.user_offsets[1:] - 1])[0])
    at_last = log.user_offsets[user + 1] - 1
    ids = log.item_ids
    expected = LiveSuccessions(log)
    store.add(
        [
            stored("new", ids[1], AFTER),
            stored(log.user_ids[user], ids[3], AFTER + 60),  # after what the log has of them
            stored("new", ids[2], AFTER + 120),
            stored("other", ids[5], AFTER + 150),
            stored("new", ids[4], AFTER + 90),  # late: it follows nothing
        ]
    )
    minute = AFTER // 60
    expected.add(int(log.items[at_last]), 3, minute + 1)
    expected.add(1, 2, minute + 2)
    _, found = trending.refresh()
    jax.tree.map(np.testing.assert_array_equal, found, expected.successions())
    # In the shape that the model was warmed up with, so that nothing is compiled again.
    shown = served.scorer.catalogue.successions
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, shown)
    store.add([stored("new", ids[6], AFTER + 180), stored("other", ids[7], AFTER + 200)])
    store.forget("other")
    trending.forget("other")
    expected.add(2, 6, minute + 3)
    _, found = trending.refresh()
    jax.tree.map(np.testing.assert_array_equal, found, expected.successions())


def test_what_somebody_did_last_is_not_kept_for_long_but_looked_up(served, store, monkeypatch):
    trending, log = Trending(served, store), served.log
    expected, ids, user = LiveSuccessions(log), log.item_ids, log.user_ids[0]
    store.add([stored(user, ids[1], AFTER), stored("newer", ids[1], AFTER + DAY_S)])
    store.add([stored(user, ids[9], 2**40)])  # that did not happen yet
    expected.add(int(log.items[log.user_offsets[1] - 1]), 1, AFTER // 60)
    trending.refresh()
    assert not trending._last_events, "both are years ago"
    monkeypatch.setattr("stt_jax.service.trending.now_s", lambda: AFTER + DAY_S + 600)
    late, minute = AFTER + DAY_S, (AFTER + DAY_S) // 60
    store.add([stored(user, ids[3], late + 120), stored("newer", ids[2], late + 60)])
    expected.add(1, 2, minute + 1)
    expected.add(1, 3, minute + 2)
    _, found = trending.refresh()
    jax.tree.map(np.testing.assert_array_equal, found, expected.successions())
    monkeypatch.setattr("stt_jax.service.trending.now_s", lambda: AFTER + 2 * DAY_S + 90)
    trending.refresh()
    assert list(trending._last_events) == [user]


def test_the_later_of_what_log_and_store_have_is_what_somebody_did_last(served, store):
    trending, log = Trending(served, store), served.log
    expected, ids, user = LiveSuccessions(log), log.item_ids, log.user_ids[0]
    last = log.user_offsets[1] - 1
    store.add([stored(user, ids[1], int(log.times[last]) - 5)])  # late
    trending.refresh()
    store.add([stored(user, ids[2], AFTER)])
    expected.add(int(log.items[last]), 2, AFTER // 60)
    _, found = trending.refresh()
    jax.tree.map(np.testing.assert_array_equal, found, expected.successions())


def test_nothing_follows_what_was_forgotten_or_is_not_in_the_vocabulary(served, store):
    trending, log = Trending(served, store), served.log
    expected, ids, user = LiveSuccessions(log), log.item_ids, log.user_ids[0]
    store.forget(user)
    store.add([stored(user, ids[1], AFTER)])  # after what the log has of them, which is not used
    store.add([stored("new", ids[1], AFTER), stored("new", "unheard of", AFTER + 60)])
    store.add([stored("new", ids[2], AFTER + 120), stored("new", ids[3], AFTER + 180)])
    expected.add(2, 3, AFTER // 60 + 3)
    _, found = trending.refresh()
    jax.tree.map(np.testing.assert_array_equal, found, expected.successions())


def test_what_was_read_before_the_store_failed_is_shown_the_next_time(served, store, monkeypatch):
    monkeypatch.setattr("stt_jax.service.trending._AT_ONCE", 1)
    trending, log = Trending(served, store), served.log
    store.add([stored("a", log.item_ids[item], AFTER) for item in (1, 2)])
    read = store.after

    def failing(sequence, most):
        if sequence >= 1:
            raise StoreError("gone")
        return read(sequence, most)

    with monkeypatch.context() as patch:
        patch.setattr(store, "after", failing)
        with pytest.raises(StoreError):
            trending.refresh()
        store.forget("a")  # the second is never read
    assert trending.refresh() is not None
    assert_counted(trending, log, [(log.item_ids[1], AFTER)])


def test_a_store_that_fails_leaves_the_service_its_trends(run, tmp_path, monkeypatch):
    def failing(*_):
        raise StoreError("gone")

    with serving(run, store=f"sqlite:///{tmp_path}/events.db") as client:
        before = client.recommend(user="nobody yet")
        monkeypatch.setattr(client.service.store, "after", failing)
        client.service.count_trends()
        assert client.recommend(user="nobody yet")["items"] == before["items"]


def test_an_earlier_number_that_another_service_commits_later_is_counted(served, store):
    trending, log = Trending(served, store), served.log
    store.add([stored("a", log.item_ids[1], AFTER), stored("b", log.item_ids[2], AFTER)])
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE events SET sequence = 7 WHERE sequence = 2"))
    trending.refresh()
    store.add([stored("c", log.item_ids[3], AFTER)])
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE events SET sequence = 5 WHERE sequence = 8"))
    trending.refresh()
    assert_counted(trending, log, [(log.item_ids[item], AFTER) for item in (1, 2, 3)])


@pytest.fixture(params=["new", "of before"])
def any_store(request, store, tmp_path):
    """A new file, and one that was made when its numbers were given again."""
    if request.param == "new":
        yield store
        return
    url = f"sqlite:///{tmp_path}/old.db"
    with _numbers_given_again():
        EventStore(url).close()
    old = EventStore(url)
    assert old._reuses_numbers
    yield old
    old.close()


@contextlib.contextmanager
def _numbers_given_again():
    options = store_module._EVENTS.dialect_options["sqlite"]
    options["autoincrement"] = False
    try:
        yield
    finally:
        options["autoincrement"] = True


def test_nothing_is_counted_twice_after_somebody_with_the_newest_events_is_forgotten(
    served, any_store, monkeypatch
):
    monkeypatch.setattr("stt_jax.service.trending._LOOK_BACK", 2)
    trending, ids = Trending(served, any_store), served.log.item_ids
    first = [stored("here", ids[1], AFTER + hour * 3600) for hour in range(5)]
    gone = [stored("gone", ids[2], AFTER + hour * 3600) for hour in range(4)]
    any_store.add([*first, *gone[:2]])
    any_store.add(gone[2:])
    trending.refresh()
    counted = [*first, *gone]
    any_store.forget("gone")
    trending.refresh()
    assert_counted(trending, served.log, [(event.item, event.time_s) for event in counted])
    # Those that come then are counted, the first of them too.
    for number in range(6):
        counted.append(stored("late", ids[3], AFTER + 60 * number))
        any_store.add(counted[-1:])
        trending.refresh()
    any_store.forget("nobody")
    trending.refresh()
    assert_counted(trending, served.log, [(event.item, event.time_s) for event in counted])
    assert [row.sequence for row in any_store.after(5, 100)] == [10, 11, 12, 13, 14, 15]


def test_the_newest_of_a_few_forgotten_make_nothing_count_twice(served, store, monkeypatch):
    monkeypatch.setattr("stt_jax.service.trending._LOOK_BACK", 4)
    trending, ids = Trending(served, store), served.log.item_ids
    here = [stored("here", ids[1], AFTER + hour * 3600) for hour in range(8)]
    store.add([*here, stored("gone", ids[2], AFTER), stored("gone", ids[2], AFTER + 60)])
    for _ in range(3):
        trending.refresh()
        store.forget("gone")
    counted = [*((one.item, one.time_s) for one in here), (ids[2], AFTER), (ids[2], AFTER + 60)]
    assert_counted(trending, served.log, counted)


def test_what_a_fast_clock_sends_is_counted_when_it_is_due(served, store, monkeypatch):
    monkeypatch.setattr("stt_jax.service.trending._LOOK_BACK", 1)
    monkeypatch.setattr("stt_jax.service.trending.now_s", lambda: AFTER)
    trending, log = Trending(served, store), served.log
    ids, expected = log.item_ids, LiveSuccessions(log)
    store.add(
        [
            stored("fast", ids[1], AFTER + 3),
            stored("gone", ids[2], AFTER + 3),
            stored("fast", ids[3], AFTER + 90),
            stored("fast", ids[4], AFTER - 60),
        ]
    )
    assert trending.refresh() is not None
    assert_counted(trending, log, [(ids[4], AFTER - 60)])
    store.add([stored("other", ids[5], AFTER - 5) for _ in range(3)])
    trending.refresh()
    store.forget("gone")
    trending.forget("gone")
    monkeypatch.setattr("stt_jax.service.trending.now_s", lambda: AFTER + 5)
    assert trending.refresh() is not None
    assert trending.refresh() is None
    counted = [(ids[4], AFTER - 60), (ids[5], AFTER - 5), (ids[1], AFTER + 3)]
    assert_counted(trending, log, counted)
    monkeypatch.setattr("stt_jax.service.trending.now_s", lambda: AFTER + 90)
    _, found = trending.refresh()
    assert_counted(trending, log, [*counted, (ids[3], AFTER + 90)])
    expected.add(4, 1, AFTER // 60)
    expected.add(1, 3, AFTER // 60 + 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected.successions())


def test_a_model_answers_only_once_it_was_shown_what_came(run, tmp_path, monkeypatch):
    """At the start as at a swap, where the one before it answers meanwhile."""
    answering = []
    service = Service(config(run, store=f"sqlite:///{tmp_path}/events.db"))
    refresh = Trending.refresh

    def noting(trending):
        answering.append((service._table, bool(service.not_ready)))
        return refresh(trending)

    monkeypatch.setattr(Trending, "refresh", noting)
    monkeypatch.setattr(LiveTable, "warm_up", lambda _: None)  # takes long
    service.store.add([stored("new", "i1", AFTER)])
    model = service._load_model()
    service._answer_with(model)
    first = service._table
    assert first.counts["refreshed_trends"] == 1
    service._answer_with(model)
    assert service._table is not first
    assert service._table.counts["refreshed_trends"] == 1
    assert answering == [(None, True), (first, False)]
    trending = service._trending

    def failing(_):
        raise ValueError("a defect")

    monkeypatch.setattr(Trending, "refresh", failing)
    with pytest.raises(ValueError, match="a defect"):
        service._answer_with(model)
    assert service._trending is trending, "or it would count with rows of another model"
    service.stop()


def test_everybody_is_answered_by_what_is_popular_by_now(run, tmp_path):
    log = open_log(run.parent / "prepared")
    item = log.item_ids[7]
    asked = {"user": "nobody yet", "k": 11, "time": AFTER + 7200}

    def probability(client):
        answer = client.recommend(**asked)["items"]
        return next(found["probability"] for found in answer if found["item"] == item)

    store = f"sqlite:///{tmp_path}/events.db"
    with serving(run, store=store) as client:
        before = probability(client)
        crowd = [{"user": f"one of many {n}", "item": item, "time": AFTER} for n in range(40)]
        client.events(*crowd)
        assert probability(client) == before
        client.service.count_trends()
        after = probability(client)
        assert after > before + 0.01
        # At an hour before it happened it was not popular yet.
        asked["time"] = AFTER
        assert probability(client) < after - 0.01
        asked["time"] = AFTER + 7200
    with serving(run, store=store) as client:  # and after a restart
        assert probability(client) == pytest.approx(after, abs=1e-6)
    with serving(run, store=f"sqlite:///{tmp_path}/other.db", swap_seconds=0.2) as client:
        client.events(*crowd)
        for _ in range(100):  # the service looks by itself
            if abs(probability(client) - after) < 1e-6:
                break
        else:
            pytest.fail("the service did not count what came")
