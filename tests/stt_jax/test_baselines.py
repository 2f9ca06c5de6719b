import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_jax import baselines, metrics
from stt_jax.config import CityConfig
from stt_jax.data import synthetic
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, TRAIN, UNKNOWN_E7, VALIDATION, LogMeta, PreparedLog

HOUR_S = 3600
MONDAY_S = 1_704_067_200  # 2024-01-01 00:00 UTC


def make_log(users, items, times, parts, *, utc_offset_s=0, has_times=True):
    """A log in memory from parallel columns sorted by (user, time); items count from 1."""
    users, items, times, parts = (np.asarray(column) for column in (users, items, times, parts))
    num_users, num_items = int(users.max()) + 1, int(items.max())
    unknown = np.full(len(items), UNKNOWN_E7, np.int32)
    zeros = np.zeros(len(items), np.int32)
    counts = np.bincount(items[parts == TRAIN], minlength=num_items + 1).astype(np.int64)
    ids = [str(row) for row in range(num_items + 1)]
    meta = LogMeta(1, "", "", has_times, False, "unix_s", "utc", (), {}, ())
    return PreparedLog(
        directory=pathlib.Path(),
        items=items.astype(np.int32),
        times=times.astype(np.int64),
        utc_offsets_s=np.full(len(items), utc_offset_s, np.int32),
        latitudes_e7=unknown,
        longitudes_e7=unknown,
        categories=zeros,
        contexts={},
        sessions=zeros,
        parts=parts.astype(np.int8),
        user_offsets=np.searchsorted(users, np.arange(num_users + 1)),
        num_train_users=num_users,
        user_ids=[str(row) for row in range(num_users)],
        item_ids=ids,
        item_names=ids,
        item_latitudes_e7=np.full(num_items + 1, UNKNOWN_E7, np.int32),
        item_longitudes_e7=np.full(num_items + 1, UNKNOWN_E7, np.int32),
        item_categories=np.zeros(num_items + 1, np.int32),
        item_train_counts=counts,
        category_values=[""],
        context_values={},
        meta=meta,
    )


def split_by_position(num_events):
    """The first 70 % of a person's events train, 15 % validation, the rest test."""
    positions = np.arange(num_events) / num_events
    return np.where(positions < 0.7, TRAIN, np.where(positions < 0.85, VALIDATION, TEST))


def person_log(sequences, **options):
    """One list of (item, time) a person."""
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    pairs = np.array([pair for sequence in sequences for pair in sequence])
    parts = np.concatenate([split_by_position(len(sequence)) for sequence in sequences])
    return make_log(users, pairs[:, 0], pairs[:, 1], parts, **options)


def evaluate(log, **options):
    validation, test = find_targets(log, VALIDATION), find_targets(log, TEST)
    options = {"max_tuning_targets": 150} | options
    return baselines.evaluate_baselines(log, validation, test, **options), test


def mrr(result):
    return metrics.ranking_metrics(result.ranks)["mrr"]


@pytest.fixture(scope="module")
def city_log():
    config = CityConfig(num_users=20, num_places=60, num_days=28, seed=3)
    city = synthetic.generate_city(config)
    parts = np.concatenate([split_by_position(count) for count in np.bincount(city.event_users)])
    # Places without training events are unknown items, as in a prepared log.
    seen = np.unique(city.event_places[parts == TRAIN])
    rows = np.zeros(config.num_places, np.int64)
    rows[seen] = np.arange(1, len(seen) + 1)
    items = rows[city.event_places]
    offset_s = 60 * synthetic.UTC_OFFSET_MIN
    return make_log(city.event_users, items, city.event_times_s, parts, utc_offset_s=offset_s)


@pytest.fixture(scope="module")
def city_results(city_log):
    return evaluate(city_log)[0]


def dense(scores, num_rows):
    """Scores as [n, V + 1]."""
    table = np.tile(scores.shared, (num_rows, 1))
    rows, items = np.divmod(scores.keys, len(scores.shared))
    table[rows, items] += scores.values
    table[:, 0] = -np.inf
    return table


def asked_for(log, targets, mode="known"):
    counts = baselines.TrainingCounts(log)
    return counts, baselines._gather(counts, targets, mode)


@settings(deadline=None)
@given(st.data())
def test_sparse_ranks_equal_dense_ranks(data):
    num_rows, num_columns = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 7))
    value = st.sampled_from([-np.inf, 0.0, 0.25, 0.5, 1.0])
    cells = st.tuples(st.integers(0, num_rows - 1), st.integers(1, num_columns - 1))
    filled = data.draw(st.dictionaries(cells, value))
    keys = np.array(sorted(row * num_columns + item for row, item in filled), np.int64)
    values = np.array([filled[divmod(int(key), num_columns)] for key in keys])
    shared = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=num_columns, max_size=num_columns)
    scores = baselines.Scores(keys, values, np.array(data.draw(shared)))
    targets = st.lists(st.integers(0, num_columns - 1), min_size=num_rows, max_size=num_rows)
    target_items = np.array(data.draw(targets))
    log = person_log([[(1, 0)] * 8])
    _, asked = asked_for(log, find_targets(log, TEST))
    asked = dataclasses.replace(asked, target_items=target_items)
    expected = metrics.target_ranks(dense(scores, num_rows), target_items)
    np.testing.assert_array_equal(baselines._ranks(scores, asked), expected)


def brute_force_own(log, targets, index, weight):
    """Scores of one target's own items: the sum of `weight(event, target event, context)`."""
    scores = np.zeros(log.num_items + 1)
    context = targets.context(index)
    for position, event in enumerate(context):
        scores[log.items[event]] += weight(position, event, context)
    scores[0] = 0
    return scores / max(scores.sum(), 1e-300)


@pytest.mark.parametrize("context", ["all", "strict"])
def test_own_scores_match_counting_by_hand(city_log, context):
    log = city_log
    if context == "strict":
        log = dataclasses.replace(log, sessions=np.ones(log.num_events, np.int32))
    targets = find_targets(log, TEST, context=context)[::17]
    counts, asked = asked_for(log, targets)
    hours = (log.times + log.utc_offsets_s - MONDAY_S) // HOUR_S % 168
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
    actual = dense(baselines._score_own(counts, asked, options), len(targets))
    for index in range(len(targets)):

        def weight(position, event, context, request=hours[targets.events[index]]):
            age = len(context) - position
            days = (log.times[context[-1]] - log.times[event]) / 86_400
            before = log.items[context[position - 1]] if position else 0
            follows = before > 0 and before == log.items[context[-1]]
            apart = abs(hours[event] % 24 - request % 24)
            apart = min(apart, 24 - apart)
            fit = np.exp(-0.5 * (apart / 2.0) ** 2)
            fit *= 1.0 if (hours[event] >= 120) == (request >= 120) else 0.25
            recency = 0.5 ** (age / 30) * 0.5 ** (days / 7) * age**-0.5
            return recency * (1.0 if follows else 0.1) * (fit + 0.1)

        expected = brute_force_own(log, targets, index, weight)
        np.testing.assert_allclose(actual[index, 1:], expected[1:], rtol=1e-9, atol=1e-12)


def test_markov_popularity_and_knn_match_counting_by_hand(city_log, monkeypatch):
    monkeypatch.setattr(baselines, "NUM_NEIGHBOURS", 60)  # all of them
    log = city_log
    targets = find_targets(log, TEST)[::23]
    counts, asked = asked_for(log, targets)
    num_columns = log.num_items + 1
    follows, had = np.zeros((num_columns, num_columns)), np.zeros((log.num_users, num_columns))
    for user in range(log.num_users):
        events = [
            event
            for event in range(log.user_offsets[user], log.user_offsets[user + 1])
            if log.parts[event] == TRAIN
        ]
        for before, after in itertools.pairwise(events):
            follows[log.items[before], log.items[after]] += 1
        had[user, log.items[events]] = 1
    together = had.T @ had
    cosine = together / np.sqrt(np.outer(np.diag(together), np.diag(together)).clip(1))
    np.fill_diagonal(cosine, 0)
    popularity = log.item_train_counts / log.item_train_counts.sum()
    np.testing.assert_allclose(counts.popularity, popularity)
    options = {"fallback": 0.0, "seen": "keep", "half_life_events": np.inf}
    markov = dense(baselines._score_markov(counts, asked, options), len(targets))
    knn = dense(baselines._score_item_knn(counts, asked, options), len(targets))
    for index in range(len(targets)):
        context = targets.context(index)
        row = follows[log.items[context[-1]]]
        np.testing.assert_allclose(markov[index, 1:], row[1:] / max(row.sum(), 1))
        own = np.bincount(log.items[context], minlength=num_columns).astype(float)
        own[0] = 0
        expected = own @ cosine
        # The cosines are kept in float32.
        np.testing.assert_allclose(knn[index, 1:], expected[1:] / expected.sum(), rtol=1e-4)


def test_unknown_mode_sums_over_the_hours_that_follow(city_log):
    targets = find_targets(city_log, TEST)[::31]
    counts, asked = asked_for(city_log, targets, "unknown")
    options = {"width_h": 1.0, "hour_floor": 0.0, "other_days": 0.5, "fallback": 0.0}
    actual = baselines._hour_weights(counts, asked, options)
    expected = np.zeros_like(actual)
    for hour in range(168):
        known = dataclasses.replace(asked, request_hours=np.full(len(targets), hour))
        chances = counts.next_hours[asked.last_hours[asked.rows], hour]
        expected += chances * baselines._hour_weights(counts, known, options)
    np.testing.assert_allclose(actual, expected)


def test_all_baselines_answer_in_both_modes(city_log, city_results):
    assert list(city_results) == ["unknown", "known"]
    num_targets = len(find_targets(city_log, TEST))
    for results in city_results.values():
        assert list(results) == [*baselines.BASELINES, "mix"]
        for result in results.values():
            assert result.ranks.dtype == np.int32
            assert result.ranks.shape == (num_targets,)
            assert 0 <= result.ranks.min() <= result.ranks.max() <= city_log.num_items


def test_request_time_helps_in_a_city_with_rhythms(city_results):
    known, unknown = city_results["known"], city_results["unknown"]
    assert mrr(known["own_hour"]) > mrr(known["own_frequency"]) + 0.1
    assert mrr(known["mix"]) > mrr(unknown["mix"]) + 0.1
    for name in ("popularity", "markov", "item_knn", "own_frequency", "own_recency"):
        assert mrr(known[name]) == mrr(unknown[name])


def test_mix_is_no_worse_than_its_best_part_on_validation(city_results):
    for results in city_results.values():
        parts = [result.validation_mrr for name, result in results.items() if name != "mix"]
        assert results["mix"].validation_mrr >= max(parts) - 0.01


def test_validation_decides_the_options_not_test(city_log, city_results):
    """Other test targets, same options."""
    validation = find_targets(city_log, VALIDATION)
    few = find_targets(city_log, TEST)[:5]
    again = baselines.evaluate_baselines(city_log, validation, few, max_tuning_targets=150)
    for mode, results in again.items():
        for name, result in results.items():
            assert result.options == city_results[mode][name].options
            np.testing.assert_array_equal(result.ranks, city_results[mode][name].ranks[:5])


def test_unknown_mode_never_looks_at_the_request_time(city_log, city_results):
    """Moving the last event of each person in time changes known mode only."""
    targets = find_targets(city_log, TEST, targets="last")
    validation = find_targets(city_log, VALIDATION)[::20]
    times = city_log.times.copy()
    times[targets.events] += 5 * HOUR_S
    moved = dataclasses.replace(city_log, times=times)
    before = baselines.evaluate_baselines(city_log, validation, targets)
    after = baselines.evaluate_baselines(moved, validation, targets)
    for name in before["unknown"]:
        np.testing.assert_array_equal(before["unknown"][name].ranks, after["unknown"][name].ranks)
    assert np.any(before["known"]["own_hour"].ranks != after["known"]["own_hour"].ranks)


def test_events_after_the_target_and_of_others_after_training_change_nothing(city_log):
    user = 4
    validation = find_targets(city_log, VALIDATION)
    validation, test = validation[validation.users == user], find_targets(city_log, TEST)
    test = test[test.users == user][:3]
    items = city_log.items.copy()
    later = np.arange(city_log.num_events) > test.events[-1]
    others = (city_log.parts != TRAIN) & (
        (np.arange(city_log.num_events) < city_log.user_offsets[user])
        | (np.arange(city_log.num_events) >= city_log.user_offsets[user + 1])
    )
    changed = (later | others) & (city_log.parts != TRAIN)
    items[changed] = 1 + items[changed] % city_log.num_items
    altered = dataclasses.replace(city_log, items=items)
    before = baselines.evaluate_baselines(city_log, validation, test)
    after = baselines.evaluate_baselines(altered, validation, test)
    for mode, results in before.items():
        for name, result in results.items():
            np.testing.assert_array_equal(result.ranks, after[mode][name].ranks, err_msg=name)
            assert result.options == after[mode][name].options


def test_chunking_changes_nothing(city_log, city_results, monkeypatch):
    monkeypatch.setattr(baselines, "_CHUNK_TARGETS", 37)
    again, _ = evaluate(city_log, modes=("known",))
    for name, result in again["known"].items():
        np.testing.assert_array_equal(result.ranks, city_results["known"][name].ranks)


def test_markov_wins_where_everybody_follows_the_same_cycle():
    rng = np.random.default_rng(0)
    cycle = rng.permutation(20) + 1
    sequences = [
        [(cycle[(start + step) % 20], step * HOUR_S) for step in range(60)] for start in range(15)
    ]
    results, _ = evaluate(person_log(sequences), modes=("unknown",))
    assert mrr(results["unknown"]["markov"]) == 1
    assert mrr(results["unknown"]["own_frequency"]) < 0.5
    assert mrr(results["unknown"]["mix"]) > 0.95


def test_recency_wins_where_habits_change():
    rng = np.random.default_rng(1)
    sequences = []
    for _ in range(30):
        habits = np.repeat(rng.permutation(40)[:12] + 1, 10)
        sequences.append([(item, 86_400 * step) for step, item in enumerate(habits)])
    results, _ = evaluate(person_log(sequences), modes=("unknown",))
    assert mrr(results["unknown"]["own_recency"]) > mrr(results["unknown"]["own_frequency"]) + 0.3


def test_seen_items_are_left_out_where_nobody_returns():
    """Films: people of one taste watch each of their 30 films once, in any order."""
    rng = np.random.default_rng(2)
    sequences = []
    for user in range(60):
        films = rng.permutation(30)[:25] + 1 + 30 * (user % 3)
        sequences.append([(film, step * HOUR_S) for step, film in enumerate(films)])
    results, _ = evaluate(person_log(sequences), modes=("unknown",))
    results = results["unknown"]
    assert results["item_knn"].options["seen"] == "leave out"
    assert results["mix"].options["seen"] == "leave out"
    assert mrr(results["item_knn"]) > 2 * mrr(results["popularity"])
    assert mrr(results["mix"]) > mrr(results["own_frequency"])


def test_log_without_times_leaves_out_what_needs_them():
    sequences = [[(1 + step % 7, 0) for step in range(40)] for _ in range(5)]
    results, _ = evaluate(person_log(sequences, has_times=False))
    for mode in baselines.MODES:
        assert "own_frequency" in results[mode]
        assert "mix" in results[mode]
        assert not {"recent_popularity", "own_hour", "own_hour_sequence"} & set(results[mode])


def test_empty_context_and_unknown_target_are_answered():
    """A person without any earlier event falls back on popularity; an unseen item is a miss."""
    log = make_log(
        users=[0, 0, 0, 1, 1, 2],
        items=[1, 1, 2, 2, 0, 1],
        times=np.arange(6) * HOUR_S + MONDAY_S,
        parts=[TRAIN, TRAIN, TRAIN, TRAIN, TEST, TEST],
    )
    results, test = evaluate(log)
    assert log.items[test.events].tolist() == [0, 1]
    for mode in baselines.MODES:
        for name, result in results[mode].items():
            assert result.ranks[0] == metrics.MISS, name
            assert result.ranks[1] == 2 if name == "recent_popularity" else result.ranks[1] <= 2
            assert np.isnan(result.validation_mrr)


def test_no_targets_give_no_ranks(city_log):
    nothing = find_targets(city_log, TEST)[:0]
    results = baselines.evaluate_baselines(city_log, nothing, nothing)
    assert all(len(result.ranks) == 0 for result in results["known"].values())


def test_unknown_mode_name_is_refused(city_log):
    nothing = find_targets(city_log, TEST)[:0]
    with pytest.raises(ValueError, match="modes must be of unknown, known; got 'both'"):
        baselines.evaluate_baselines(city_log, nothing, nothing, modes=("both",))
