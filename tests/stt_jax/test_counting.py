import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_jax import baselines, counting, metrics
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, TRAIN
from tests.stt_jax.person_logs import city_log
from tests.stt_jax.tiny_logs import FIRST_MONDAY, random_log


def dense(scores, num_rows):
    """Scores as [n, V + 1]."""
    table = np.tile(scores.shared, (num_rows, 1))
    table[scores.cells.rows, scores.cells.items] += scores.values
    table[:, 0] = -np.inf
    return table


def ask(log, targets, *, request_known=True):
    counts = counting.TrainingCounts(log)
    (asked,) = counting.gather_questions(counts, targets, request_known=request_known)
    return counts, asked


@st.composite
def scores_and_targets(draw):
    num_rows, num_columns = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    places = st.tuples(st.integers(0, num_rows - 1), st.integers(1, num_columns - 1))
    # Few distinct values, so that ties within and between the two parts are common.
    filled = draw(st.dictionaries(places, st.sampled_from([-np.inf, 0.0, 0.25, 0.5, 1.0])))
    keys = np.array(sorted(row * num_columns + item for row, item in filled), np.int64)
    values = np.array([filled[divmod(int(key), num_columns)] for key in keys])
    size = {"min_size": num_columns, "max_size": num_columns}
    shared = np.array(draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), **size)))
    item = st.integers(0, num_columns - 1)
    targets = np.array(draw(st.lists(item, min_size=num_rows, max_size=num_rows)))
    return counting.Scores(counting.Cells.of(keys, num_columns), values, shared), targets


def test_the_latest_followers_are_those_before_the_minute(monkeypatch):
    monkeypatch.setattr(counting, "NUM_LATEST", 3)
    log = random_log(seed=4)
    counts = counting.TrainingCounts(log)
    known = counts.live_successions
    times = known.minutes[:-1]
    items = np.repeat(np.arange(log.num_items + 1), 12)
    now = np.resize(np.linspace(times.min(), times.max() + 2, 12).astype(np.int64), len(items))
    rows, followed, ages = counting.latest_followers(known, items, now)
    for row, (item, minute) in enumerate(zip(items, now, strict=True)):
        mine = range(known.starts[item], known.starts[item + 1])
        before = [at for at in mine if known.minutes[at] < minute][-3:]
        np.testing.assert_array_equal(followed[rows == row], known.items[before])
        np.testing.assert_array_equal(ages[rows == row], minute - known.minutes[before])
    assert np.bincount(rows).max() == 3


@given(scores_and_targets())
def test_sparse_ranks_equal_dense_ranks(case):
    scores, targets = case
    expected = metrics.target_ranks(dense(scores, len(targets)), targets)
    np.testing.assert_array_equal(scores.ranks(targets), expected)


@given(scores_and_targets(), st.data())
def test_ranks_in_groups_are_those_among_the_items_of_the_group(case, data):
    scores, targets = case
    num_columns = len(scores.shared)
    apart = st.lists(st.integers(0, 2), min_size=num_columns, max_size=num_columns)
    apart = np.array(data.draw(apart))
    alone = dense(scores, len(targets))
    alone[apart[None] != apart[targets][:, None]] = -np.inf
    np.testing.assert_array_equal(
        scores.ranks(targets, apart), metrics.target_ranks(alone, targets)
    )


@given(scores_and_targets(), st.data())
def test_seen_items_get_minus_infinity_and_others_keep_their_score(case, data):
    scores, targets = case
    num_columns = len(scores.shared)
    cells = st.integers(0, len(targets) * num_columns - 1).filter(lambda key: key % num_columns)
    seen = np.array(sorted(data.draw(st.sets(cells))), np.int64)
    expected = dense(scores, len(targets))
    expected.ravel()[seen] = -np.inf
    without = scores.without(counting.Cells.of(seen, num_columns))
    np.testing.assert_array_equal(dense(without, len(targets)), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["all", "strict"]), st.booleans())
def test_questions_match_a_loop_over_contexts(seed, context, request_known):
    log = random_log(seed=seed)
    targets = find_targets(log, TEST, context=context)
    _, asked = ask(log, targets, request_known=request_known)
    hours = (log.times + log.utc_offsets_s - FIRST_MONDAY) // 3600 % 168
    position = 0
    for index, event in enumerate(targets.events):
        chosen = targets.context(index)
        last_item = log.items[chosen[-1]] if len(chosen) else 0
        assert asked.target_items[index] == log.items[event]
        assert asked.last_items[index] == last_item
        now = event if request_known or not len(chosen) else chosen[-1]
        assert asked.now_min[index] == log.times[now] // 60
        for age, seen in zip(range(len(chosen), 0, -1), chosen, strict=True):
            assert asked.ages[position] == age
            assert asked.ages_days[position] == (log.times[chosen[-1]] - log.times[seen]) / 86_400
            asked_hour = hours[event] if request_known else hours[chosen[-1]]
            assert asked.hour_pairs[position] == 168 * asked_hour + hours[seen]
            before = log.items[chosen[len(chosen) - age - 1]] if age < len(chosen) else 0
            assert asked.follows_last[position] == (before == last_item and before > 0)
            cell = asked.own_index[position]
            if log.items[seen]:
                assert asked.own.rows[cell] == index
                assert asked.own.items[cell] == log.items[seen]
            else:
                assert cell == len(asked.own.keys)
            position += 1
    assert position == len(asked.ages)


def test_long_contexts_keep_their_newest_events(monkeypatch):
    log = random_log(seed=1)
    targets = find_targets(log, TEST, context="strict")
    _, whole = ask(log, targets)
    monkeypatch.setattr(counting, "MAX_CONTEXT", 5)
    _, cut = ask(log, targets)
    recent = whole.ages <= 5
    np.testing.assert_array_equal(cut.ages, whole.ages[recent])
    np.testing.assert_array_equal(cut.hour_pairs, whole.hour_pairs[recent])
    np.testing.assert_array_equal(cut.last_items, whole.last_items)


@pytest.mark.parametrize("context", ["all", "strict"])
def test_own_scores_match_counting_by_hand(context):
    log = random_log(seed=2, num_users=12, max_events=80)
    targets = find_targets(log, TEST, context=context)
    counts, asked = ask(log, targets)
    options = {
        "half_life_events": 30.0,
        "half_life_days": 7.0,
        "power": 0.5,
        "sequence_floor": 0.1,
        "width_h": 2.0,
        "hour_floor": 0.1,
        "other_days": 0.25,
        "fallback": 0.0,
    }
    actual = dense(baselines.score_own(counts, asked, options), len(targets))
    hours = (log.times + log.utc_offsets_s - FIRST_MONDAY) // 3600 % 168
    for index, target in enumerate(targets.events):
        chosen = targets.context(index)
        expected = np.zeros(log.num_items + 1)
        for position, event in enumerate(chosen):
            days = (log.times[chosen[-1]] - log.times[event]) / 86_400
            age = len(chosen) - position
            weight = 0.5 ** (age / 30) * 0.5 ** (days / 7) * age**-0.5
            before = log.items[chosen[position - 1]] if position else 0
            weight *= 1.0 if before > 0 and before == log.items[chosen[-1]] else 0.1
            apart = abs(hours[event] % 24 - hours[target] % 24)
            fit = np.exp(-0.5 * (min(apart, 24 - apart) / 2.0) ** 2)
            fit *= 1.0 if (hours[event] >= 120) == (hours[target] >= 120) else 0.25
            expected[log.items[event]] += weight * (fit + 0.1)
        expected[0] = 0
        expected /= max(expected.sum(), 1e-300)
        np.testing.assert_allclose(actual[index, 1:], expected[1:], rtol=1e-9, atol=1e-12)


def test_markov_popularity_and_knn_match_counting_by_hand(monkeypatch):
    monkeypatch.setattr(counting, "NUM_NEIGHBOURS", 60)  # all of them
    log = city_log()
    targets = find_targets(log, TEST)[::23]
    counts, asked = ask(log, targets)
    num_columns = log.num_items + 1
    follows, had = np.zeros((num_columns, num_columns)), np.zeros((log.num_users, num_columns))
    for user in range(log.num_users):
        events = np.arange(log.user_offsets[user], log.user_offsets[user + 1])
        events = events[log.parts[events] == TRAIN]
        for before, after in itertools.pairwise(events):
            follows[log.items[before], log.items[after]] += 1
        had[user, log.items[events]] = 1
    together = had.T @ had
    cosine = together / np.sqrt(np.outer(np.diag(together), np.diag(together)).clip(1))
    np.fill_diagonal(cosine, 0)
    shares = log.item_train_counts / log.item_train_counts.sum()
    np.testing.assert_allclose(counts.popularity, shares)
    options = {"fallback": 0.0, "seen": "keep", "half_life_events": None}
    markov = dense(baselines.score_markov(counts, asked, options), len(targets))
    knn = dense(baselines.score_item_knn(counts, asked, options), len(targets))
    for index in range(len(targets)):
        context = targets.context(index)
        row = follows[log.items[context[-1]]]
        np.testing.assert_allclose(markov[index, 1:], row[1:] / max(row.sum(), 1))
        own = np.bincount(log.items[context], minlength=num_columns).astype(float)
        own[0] = 0
        expected = own @ cosine
        # The cosines are kept in float32; popularity adds a millionth.
        np.testing.assert_allclose(
            knn[index, 1:], expected[1:] / expected.sum(), rtol=1e-4, atol=1e-6
        )


def test_neighbours_are_the_most_similar_items(monkeypatch):
    log = city_log()
    monkeypatch.setattr(counting, "NUM_NEIGHBOURS", 60)
    everything = counting.TrainingCounts(log).similarities.toarray()
    monkeypatch.setattr(counting, "NUM_NEIGHBOURS", 5)
    nearest = counting.TrainingCounts(log).similarities
    assert np.diff(nearest.indptr).max() == 5
    np.testing.assert_allclose(
        np.sort(nearest.toarray(), axis=1)[:, -5:], np.sort(everything, axis=1)[:, -5:]
    )


def test_recent_popularity_halves_with_every_half_life():
    log = city_log()
    counts = counting.TrainingCounts(log)
    chosen = np.flatnonzero(log.parts == TRAIN)
    ages_days = (log.times[chosen].max() - log.times[chosen]) / 86_400
    expected = np.zeros(log.num_items + 1)
    np.add.at(expected, log.items[chosen], 0.5 ** (ages_days / 3))
    np.testing.assert_allclose(counts.recent_popularity(3.0), expected / expected.sum())


def test_hours_are_averaged_over_what_follows_if_the_request_time_is_unknown():
    log = random_log(seed=3)
    targets = find_targets(log, TEST)
    counts, asked = ask(log, targets, request_known=False)
    options = {"width_h": 1.0, "hour_floor": 0.0, "other_days": 0.5}
    kernel = np.zeros((168, 168))
    for request, event in itertools.product(range(168), range(168)):
        apart = abs(request % 24 - event % 24)
        kernel[request, event] = np.exp(-0.5 * min(apart, 24 - apart) ** 2)
        if (request >= 120) != (event >= 120):
            kernel[request, event] *= 0.5
    last_hours, hours = np.divmod(asked.hour_pairs, 168)
    expected = [counts.next_hours[a] @ kernel[:, b] for a, b in zip(last_hours, hours, strict=True)]
    np.testing.assert_allclose(baselines.hour_weights(counts, asked, options), expected)
    assert counts.next_hours.sum(axis=1) == pytest.approx(1)
