import dataclasses

import numpy as np
import pytest

from stt_jax import baseline_tuning, baselines, counting, metrics
from stt_jax.data.protocol import MODES, find_targets
from stt_jax.data.store import TEST, TRAIN, VALIDATION
from tests.stt_jax.person_logs import city_log as make_city_log
from tests.stt_jax.person_logs import make_log, person_log

HOUR_S = 3600


def evaluate(log, **options):
    validation, test = find_targets(log, VALIDATION), find_targets(log, TEST)
    options = {"max_tuning_targets": 150} | options
    return baseline_tuning.evaluate_baselines(log, validation, test, **options), test


def mrr(result):
    return metrics.ranking_metrics(result.ranks)["mrr"]


@pytest.fixture(scope="module")
def city_log():
    return make_city_log()


@pytest.fixture(scope="module")
def city_results(city_log):
    return evaluate(city_log)[0]


def test_all_baselines_answer_in_both_modes(city_log, city_results):
    assert list(city_results) == ["unknown", "known"]
    num_targets = len(find_targets(city_log, TEST))
    for results in city_results.values():
        training_alone = [
            name for name, kind in baselines.BASELINES.items() if not kind.needs_live_trends
        ]
        assert list(results) == [*training_alone, "mix"]
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
    again = baseline_tuning.evaluate_baselines(city_log, validation, few, max_tuning_targets=150)
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
    before = baseline_tuning.evaluate_baselines(city_log, validation, targets)
    after = baseline_tuning.evaluate_baselines(moved, validation, targets)
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
    before = baseline_tuning.evaluate_baselines(city_log, validation, test)
    after = baseline_tuning.evaluate_baselines(altered, validation, test)
    for mode, results in before.items():
        for name, result in results.items():
            np.testing.assert_array_equal(result.ranks, after[mode][name].ranks, err_msg=name)
            assert result.options == after[mode][name].options


def test_chunking_changes_nothing(city_log, city_results, monkeypatch):
    monkeypatch.setattr(counting, "_CHUNK_TARGETS", 37)
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


def news_log():
    """Everybody reads the article of the hour; a new one comes every six hours."""
    rng = np.random.default_rng(3)
    articles = rng.integers(1, 41, 200)
    sequences = []
    for _ in range(40):
        hours = np.sort(rng.choice(1000, 40, replace=False))
        sequences.append([(articles[hour // 6], hour * HOUR_S) for hour in hours])
    return person_log(sequences)


def test_what_is_trending_wins_where_everybody_reads_the_same():
    log = news_log()
    results, test = evaluate(log, live_trends=True)
    known = results["known"]
    # Not in the first hour of an article.
    assert 0.7 < mrr(known["trending"]) < 0.95
    lively = ("trending", "recent_markov", "mix")
    assert all(mrr(known[name]) < 0.4 for name in known if name not in lively)
    assert mrr(known["mix"]) > 0.6
    assert mrr(results["unknown"]["trending"]) < 0.5  # where the last event was, it is long ago
    for mode, without in evaluate(log)[0].items():
        assert "trending" not in without
        for name, result in without.items():
            if name != "mix":
                np.testing.assert_array_equal(result.ranks, results[mode][name].ranks)
    # What anybody does in the hour of a target or after it is not counted for it.
    assert_blind_to_what_comes(log, test[7:8], "trending")


def assert_blind_to_what_comes(log, target, name):
    """That a target's rank stays if everything else from its time on was another item."""
    at = log.times[target.events[0]]
    items = np.where(log.times >= at, 1 + log.items % log.num_items, log.items)
    items[target.events] = log.items[target.events]
    changed = dataclasses.replace(log, items=items)
    before, again = (
        baseline_tuning.evaluate_baselines(
            one, find_targets(log, VALIDATION)[:0], target, names=[name], live_trends=True
        )
        for one in (log, changed)
    )
    for mode in MODES:
        assert again[mode][name].ranks == before[mode][name].ranks


def test_what_followed_lately_wins_where_links_change_by_the_day():
    rng = np.random.default_rng(4)
    sequences = []
    for _ in range(40):
        events = []
        for hour in np.sort(rng.choice(24 * 30, 40, replace=False)):
            page = rng.integers(1, 11)
            events.append((page, hour * HOUR_S))
            linked = 11 + (7 * page + 5 * (hour // 24)) % 30
            events.append((linked, hour * HOUR_S + 120))
        sequences.append(events)
    log = person_log(sequences)
    results, test = evaluate(log, live_trends=True)
    for mode in MODES:
        of_mode = results[mode]
        # Above what is known of yesterday, below what would be known of the target itself.
        assert 0.4 < mrr(of_mode["recent_markov"]) < 0.8
        assert mrr(of_mode["recent_markov"]) > mrr(of_mode["markov"]) + 0.2
        assert mrr(of_mode["mix"]) > mrr(of_mode["recent_markov"]) - 0.05
    linked = np.flatnonzero(log.items[test.events] > 10)[3]
    assert_blind_to_what_comes(log, test[linked : linked + 1], "recent_markov")


def test_log_without_times_leaves_out_what_needs_them():
    sequences = [[(1 + step % 7, 0) for step in range(40)] for _ in range(5)]
    results, _ = evaluate(person_log(sequences, has_times=False))
    for mode in MODES:
        assert "own_frequency" in results[mode]
        assert "mix" in results[mode]
        assert not {"recent_popularity", "own_hour", "own_hour_sequence"} & set(results[mode])


def test_empty_context_and_unknown_target_are_answered():
    """A person without any earlier event falls back on popularity; an unseen item is a miss."""
    log = make_log(
        users=[0, 0, 0, 1, 1, 2],
        items=[1, 1, 2, 2, 0, 1],
        times=np.arange(6) * HOUR_S,
        parts=[TRAIN, TRAIN, TRAIN, TRAIN, TEST, TEST],
    )
    results, test = evaluate(log)
    assert log.items[test.events].tolist() == [0, 1]
    for mode in MODES:
        for name, result in results[mode].items():
            assert result.ranks[0] == metrics.MISS, name
            assert result.ranks[1] == 2 if name == "recent_popularity" else result.ranks[1] <= 2
            assert np.isnan(result.validation_mrr)


def test_no_targets_give_no_ranks(city_log):
    nothing = find_targets(city_log, TEST)[:0]
    results = baseline_tuning.evaluate_baselines(city_log, nothing, nothing)
    assert all(len(result.ranks) == 0 for result in results["known"].values())


def test_unknown_mode_name_is_refused(city_log):
    nothing = find_targets(city_log, TEST)[:0]
    with pytest.raises(ValueError, match="modes must be of unknown, known; got 'both'"):
        baseline_tuning.evaluate_baselines(city_log, nothing, nothing, modes=("both",))
