"""What came right after what and when, listed once or going on."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_jax import successions as module
from stt_jax.batch import table_rows
from stt_jax.model.crowd import latest_followers
from stt_jax.successions import LiveSuccessions, find_successions
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=9, seed=8)
EVERYTHING = np.arange(LOG.num_events)


def by_hand(log, events):
    """(before, after, minute) of every succession, in the log's order."""
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    found = []
    for one, other in itertools.pairwise(events):
        before, after = int(log.items[one]), int(log.items[other])
        if users[one] == users[other] and before > 0 and after > 0:
            found.append((before, after, int(log.times[other]) // 60))
    return found


def listed(found):
    """The same of what is listed, of each item in its order."""
    owners = np.repeat(np.arange(len(found.starts) - 1), np.diff(found.starts))
    entries = zip(
        owners.tolist(),
        found.items[: len(owners)].tolist(),
        found.minutes[: len(owners)].tolist(),
        strict=True,
    )
    return [entry for entry in entries if entry[2] < 2**31 - 1]


def shares_by_hand(known, item, minute, half_life_min, num_latest):
    """{item: share} of the latest before the minute, and what counts in all."""
    newest = max((at for _, _, at in known), default=0)
    now = min(minute, newest + 1)
    mine = sorted(
        ((at, after) for before, after, at in known if before == item and at < now),
        key=lambda entry: entry[0],
    )
    weights = {}
    for at, after in mine[-num_latest:]:
        weights[after] = weights.get(after, 0.0) + 0.5 ** ((now - at) / half_life_min)
    total = sum(weights.values())
    return {after: weight / total for after, weight in weights.items()}, total


def ask(found, items, minutes, half_lives_min, size=50):
    """What `latest_followers` says, compiled, of [n] questions."""
    shape = (1, len(items))
    return jax.jit(latest_followers, static_argnames=("half_lives_min", "size"))(
        jax.tree.map(jnp.asarray, found),
        jnp.asarray(items, jnp.int32).reshape(shape),
        jnp.asarray(minutes, jnp.int32).reshape(shape),
        half_lives_min=half_lives_min,
        size=size,
    )


def test_every_succession_of_known_items_is_listed_in_the_order_of_its_minute():
    for events in (EVERYTHING, np.flatnonzero(LOG.parts == 0)):
        expected = by_hand(LOG, events)
        found = find_successions(LOG, events)
        assert listed(found) == sorted(expected, key=lambda entry: (entry[0], entry[2]))
        assert len(found.starts) == table_rows(LOG.num_items) + 1
        assert found.newest == max(minute for _, _, minute in expected)


def test_what_follows_lately_is_by_the_times_before_the_minute(monkeypatch):
    monkeypatch.setattr("stt_jax.model.crowd.NUM_LATEST", 6)
    found, known = find_successions(LOG, EVERYTHING), by_hand(LOG, EVERYTHING)
    minutes = np.unique([minute for _, _, minute in known])
    asked = [
        (item, int(minute) + shift)
        for item in range(LOG.num_items + 1)
        for minute in minutes[:: len(minutes) // 20]
        for shift in (0, 1)
    ]
    asked += [(item, 2**30) for item in range(LOG.num_items + 1)]  # after all that was counted
    half_lives = (30.0, 4000.0)
    answers = ask(found, *zip(*asked, strict=True), half_lives)
    most = 0
    for half_life, named in zip(half_lives, answers, strict=True):
        items, shares, counts = (np.asarray(array[0]) for array in jax.tree.leaves(named))
        assert (np.diff(shares, axis=-1) <= 0).all(), "the most probable first"
        for number, (item, minute) in enumerate(asked):
            expected, total = shares_by_hand(known, item, minute, half_life, 6)
            mine = items[number] > 0
            assert len(set(items[number, mine])) == mine.sum(), "each at most once"
            most = max(most, mine.sum())
            np.testing.assert_allclose(counts[number], total, rtol=1e-4, atol=1e-30)
            if total > 1e-25:
                got = dict(zip(items[number, mine].tolist(), shares[number, mine], strict=True))
                for after, share in expected.items():
                    np.testing.assert_allclose(got.pop(after, 0.0), share, atol=1e-5)
                assert not got
    assert most > 3


def test_no_more_are_named_than_asked_for():
    found = find_successions(LOG, EVERYTHING)
    items = np.arange(1, LOG.num_items + 1)
    (all_of_them,) = ask(found, items, np.full(len(items), 2**30), (1e6,))
    (few,) = ask(found, items, np.full(len(items), 2**30), (1e6,), size=2)
    assert few.items.shape == (1, len(items), 2)
    np.testing.assert_array_equal(few.shares, all_of_them.shares[..., :2])


def test_an_empty_log_says_nothing():
    empty = dataclasses.replace(
        LOG, items=LOG.items[:0], times=LOG.times[:0], user_offsets=np.zeros(1, np.int64)
    )
    for found in (find_successions(empty, EVERYTHING[:0]), LiveSuccessions(empty).successions()):
        (named,) = ask(found, [0, 3], [100, 2**30], (60.0,))
        assert not named.items.any()
        assert not named.counts.any()


@pytest.mark.parametrize("num_latest", [3, 128])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_live_ones_keep_the_latest_of_each_item_whatever_comes_when(num_latest, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NUM_LATEST", num_latest)
        live, known = LiveSuccessions(LOG), by_hand(LOG, EVERYTHING)
        shapes = jax.tree.map(np.shape, live.successions())
        minutes = sorted(minute for _, _, minute in known)
        items = st.integers(1, LOG.num_items)
        minute = st.integers(minutes[0] - 10, minutes[-1] + 50)
        new = data.draw(st.lists(st.tuples(items, items, minute)))
        for before, after, minute in new:
            live.add(before, after, minute)
        found = live.successions()
    assert jax.tree.map(np.shape, found) == shapes
    assert found.newest == max(minute for _, _, minute in [*known, *new])
    by_item = {}
    for before, after, minute in listed(found):
        by_item.setdefault(before, []).append((minute, after))
    for item in range(1, LOG.num_items + 1):
        mine = [(minute, after) for before, after, minute in [*known, *new] if before == item]
        kept = by_item.get(item, [])
        minutes = sorted(minute for minute, _ in mine)[-num_latest:]
        assert [minute for minute, _ in kept] == minutes
        # Which of those of the oldest minute are kept does not matter.
        oldest = minutes[0] if minutes else 0
        assert sorted(entry for entry in kept if entry[0] > oldest) == sorted(
            entry for entry in mine if entry[0] > oldest
        )


def test_arrays_that_were_shown_do_not_change():
    live = LiveSuccessions(LOG)
    shown = live.successions()
    before = listed(shown)
    live.add(1, 2, 2**30)
    assert listed(shown) == before
