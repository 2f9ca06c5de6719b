"""What training hides is hidden as often as asked, and as if it had never been there."""

import jax
import numpy as np

from stt_jax.config import TrainingConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.training import input_masking
from stt_jax.training.input_masking import hide, hide_domains, hide_parts
from tests.stt_jax.tiny_logs import random_log


def requests():
    source = TrainingBatches(random_log(num_users=30), window=32, requests=16, batch_rows=8, seed=0)
    return jax.tree.map(jax.numpy.asarray, source[0][1])


def test_hiding_shows_the_stated_fractions_and_never_the_exact_place():
    before = requests()
    config = TrainingConfig(known_time_rate=0.7, known_place_rate=0.3, place_noise_m=100.0)
    times, places = [], []
    for seed in range(30):
        after = hide_parts(before, jax.random.key(seed), config)
        times.append(np.asarray(after.time_known)[np.asarray(before.time_known)])
        had = ~np.isnan(np.asarray(before.coords[..., 0]))
        places.append(~np.isnan(np.asarray(after.coords[..., 0]))[had])
        moved = np.asarray(after.coords - before.coords)
        moved = moved[~np.isnan(moved)]
        assert np.all(moved != 0)
        assert np.abs(moved).mean() < 200
    assert abs(np.concatenate(times).mean() - 0.7) < 0.05
    assert abs(np.concatenate(places).mean() - 0.3) < 0.05


def test_rates_of_zero_and_one_hide_all_and_nothing():
    before = requests()
    nothing = hide_parts(
        before, jax.random.key(0), TrainingConfig(known_time_rate=0.0, known_place_rate=0.0)
    )
    assert not nothing.time_known.any()
    assert np.isnan(nothing.coords).all()
    everything = hide_parts(before, jax.random.key(0), TrainingConfig(known_time_rate=1.0))
    np.testing.assert_array_equal(everything.time_known, before.time_known)


def test_a_cold_request_shows_neither_history_nor_who_asks_and_is_an_early_one(monkeypatch):
    monkeypatch.setattr(input_masking, "COLD_EVENTS", 5)
    source = TrainingBatches(
        random_log(num_users=30, max_events=120), window=16, requests=16, batch_rows=16, seed=0
    )
    history, before = jax.tree.map(jax.numpy.asarray, source[0])
    segments, last = np.asarray(history.segment_ids), np.asarray(before.last_tokens)
    early, later = np.zeros(last.shape, bool), 0
    for row, request in np.ndindex(last.shape):
        mine = np.flatnonzero(
            segments[row, : last[row, request] + 1] == before.segment_ids[row, request]
        )
        begins = len(mine) == 0 or history.gaps_s[row, mine[0]] == -1
        early[row, request] = len(mine) < 5 and begins and before.users[row, request] > 0
        later += not begins and len(mine) < 5
    assert later > 10, "windows that begin later in a life"
    assert 10 < early.sum() < (np.asarray(before.users) > 0).sum() - 10
    shares = []
    for seed in range(20):
        after = hide(history, before, jax.random.key(seed), TrainingConfig(cold_rate=0.3))[1]
        cold = np.asarray(after.users != before.users)
        assert not cold[~early].any()
        np.testing.assert_array_equal(np.asarray(after.last_tokens)[cold], -1)
        expected = np.where(cold, before.minutes, before.last_minutes)  # of nobody: now
        np.testing.assert_array_equal(after.last_minutes, expected)
        np.testing.assert_array_equal(
            np.asarray(after.last_tokens)[~cold & ~early], last[~cold & ~early]
        )
        shares.append(cold[early])
    assert abs(np.concatenate(shares).mean() - 0.3) < 0.07


def test_a_stale_request_sees_less_of_the_same_history_and_knows_no_later_hour():
    log = random_log(num_users=30, max_events=120)
    source = TrainingBatches(log, window=64, requests=32, batch_rows=16, seed=0)
    history, before = jax.tree.map(jax.numpy.asarray, source[0])
    segments, times = np.asarray(history.segment_ids), np.asarray(history.times)
    config = TrainingConfig(stale_rate=0.5, stale_events=3.0)
    after = hide(history, before, jax.random.key(1), config)[1]
    last, now = np.asarray(before.last_tokens), np.asarray(after.last_tokens)
    segments_after, minutes = np.asarray(after.segment_ids), np.asarray(after.last_minutes)
    np.testing.assert_array_equal(segments_after, before.segment_ids)
    np.testing.assert_array_equal(after.targets, before.targets)
    np.testing.assert_array_equal(now[last < 0], -1)
    hidden, possible = [], 0
    for row, request in np.argwhere(last >= 0):
        old, new = last[row, request], now[row, request]
        first = np.flatnonzero(segments[row] == segments_after[row, request])[0]
        assert first <= new <= old
        possible += old > first
        hidden += [old - new] if new < old else []
        gone_s = int(times[row, old] - times[row, new])
        least = int(before.last_minutes[row, request]) - minutes[row, request]
        assert gone_s / 60 <= least < gone_s / 60 + 1
    assert abs(len(hidden) / possible - 0.5) < 0.05
    # Cut where a history has fewer events than were drawn.
    assert 1.5 < np.mean(hidden) <= 3.2
    assert max(hidden) > 6


def test_a_hidden_domain_is_any_and_a_shown_one_is_that_of_the_target():
    log = random_log(num_users=30, has_domains=True)
    source = TrainingBatches(log, window=32, requests=16, batch_rows=8, seed=0)
    asked = jax.tree.map(jax.numpy.asarray, source[0][1])
    own = np.asarray(log.item_domains)[np.asarray(asked.targets)]
    known = (own > 0) & (np.asarray(asked.segment_ids) > 0)
    assert known.sum() > 50
    for rate in (0.0, 0.5, 1.0):
        config = TrainingConfig(known_domain_rate=rate)
        shown = np.asarray(hide_parts(asked, jax.random.key(0), config).domains)
        named = ~shown.all(axis=-1)
        assert abs(named[known].mean() - rate) < 0.15
        np.testing.assert_array_equal(np.argmax(shown, -1)[named & known], own[named & known] - 1)


def test_a_hidden_domain_leaves_a_history_as_if_it_had_never_been():
    log = random_log(num_users=30, has_domains=True)
    source = TrainingBatches(log, window=12, requests=8, batch_rows=24, seed=0)
    before = jax.tree.map(jax.numpy.asarray, source[0])
    key = jax.random.key(4)
    after = hide_domains(*before, key, rate=0.6, num_domains=2)
    (history, requests), (found, asked) = jax.device_get((before, after))
    hidden_windows = reaches_back = 0
    for row in range(24):
        position = 0
        for segment in range(1, history.segment_ids[row].max() + 1):
            mine = np.flatnonzero(history.segment_ids[row] == segment)
            domains = history.traits["domain"][row, mine, 0]
            kept = found.segment_ids[row] == segment
            left = set(found.traits["domain"][row, kept, 0].tolist())
            gone = {1, 2} & set(domains.tolist()) - left
            assert len(gone) <= 1
            hidden_windows += len(gone)
            stays = mine[~np.isin(domains, list(gone))]
            places = np.arange(position, position + len(stays))
            np.testing.assert_array_equal(np.flatnonzero(kept), places)
            position += len(stays)
            for name in ("items", "categories", "times", "phases", "coords", "origins"):
                np.testing.assert_array_equal(
                    getattr(found, name)[row, places], getattr(history, name)[row, stays]
                )
            gaps = np.diff(history.times[row, stays], prepend=0)
            if len(stays):
                # Since the event before the window; -1 only where a life begins with it.
                gap = int(history.gaps_s[row, mine[0]])
                gaps[0] = -1 if gap < 0 else gap + np.ptp(history.times[row, [mine[0], stays[0]]])
                reaches_back += gap >= 0 and stays[0] != mine[0]
            np.testing.assert_array_equal(found.gaps_s[row, places], gaps)
            for request in np.flatnonzero(requests.segment_ids[row] == segment):
                seen = stays[stays <= requests.last_tokens[row, request]]
                expected = places[len(seen) - 1] if len(seen) else -1
                assert asked.last_tokens[row, request] == expected
        assert not found.segment_ids[row, position:].any()
    assert hidden_windows > 5
    assert reaches_back > 0
    for name in ("targets", "times", "users", "domains"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(requests, name))


def test_a_window_of_one_domain_loses_it_as_often_as_one_of_two_loses_one():
    log = random_log(num_users=60, max_events=6, has_domains=True)
    source = TrainingBatches(log, window=32, requests=16, batch_rows=16, seed=0)
    history, requests = jax.tree.map(jax.numpy.asarray, source[0])
    segments, domains = (
        np.asarray(history.segment_ids),
        np.asarray(history.traits["domain"])[..., 0],
    )
    after = hide_domains(history, requests, jax.random.key(0), rate=1.0, num_domains=2)
    found, asked = jax.device_get(after)
    num_one = 0
    for row in range(16):
        for segment in range(1, segments[row].max() + 1):
            has = set(domains[row, segments[row] == segment].tolist()) - {0}
            kept = found.traits["domain"][row, found.segment_ids[row] == segment, 0]
            assert len(has) - len(set(kept.tolist()) - {0}) == min(len(has), 1)
            num_one += len(has) == 1
    assert num_one > 3
    last, now = np.asarray(requests.last_tokens), np.asarray(asked.last_tokens)
    for row, request in np.argwhere((last >= 0) & (now >= 0)):
        earlier_s = int(
            history.times[row, last[row, request]] - found.times[row, now[row, request]]
        )
        minutes = int(requests.last_minutes[row, request] - asked.last_minutes[row, request])
        assert earlier_s / 60 <= minutes < earlier_s / 60 + 1


def test_without_domains_or_at_rate_zero_histories_stay():
    for log, rate in ((random_log(), 0.5), (random_log(has_domains=True), 0.0)):
        source = TrainingBatches(log, window=32, requests=16, batch_rows=2, seed=0)
        history, requests = jax.tree.map(jax.numpy.asarray, source[0])
        config = TrainingConfig(hide_domain_rate=rate)
        after, _ = hide(history, requests, jax.random.key(0), config)
        jax.tree.map(np.testing.assert_array_equal, after, history)
