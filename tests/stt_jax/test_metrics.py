import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_jax import metrics

# Few distinct values, so that ties and -inf are common.
SCORE = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0])


@st.composite
def scored_targets(draw):
    num_targets, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    rows = [[draw(SCORE) for _ in range(num_items)] for _ in range(num_targets)]
    scores = np.array([[-math.inf, *row] for row in rows], np.float32)
    targets = np.array([draw(st.integers(0, num_items)) for _ in range(num_targets)], np.int64)
    return scores, targets


def brute_force_rank(row, target):
    if target == 0 or row[target] == -math.inf:
        return metrics.MISS
    others = [score for item, score in enumerate(row) if item != target]
    return 1 + sum(score >= row[target] for score in others)


@given(scored_targets())
def test_ranks_match_counting_by_hand(case):
    scores, targets = case
    expected = [brute_force_rank(row, target) for row, target in zip(scores, targets, strict=True)]
    assert metrics.target_ranks(scores, targets).tolist() == expected


@settings(max_examples=20, deadline=None)
@given(scored_targets())
def test_jax_ranks_equal_numpy_ranks(case):
    scores, targets = case
    expected = metrics.target_ranks(scores, targets)
    actual = metrics.target_ranks(jnp.asarray(scores), jnp.asarray(targets.astype(np.int32)))
    assert isinstance(actual, jax.Array)
    assert actual.dtype == expected.dtype
    assert actual.tolist() == expected.tolist()


def test_ranks_work_under_jit():
    scores = jnp.array([[-jnp.inf, 1.0, 3.0, 2.0]])
    assert jax.jit(metrics.target_ranks)(scores, jnp.array([3])).tolist() == [2]


def test_constant_scores_rank_last():
    scores = np.full((1, 11), 7.0)
    scores[0, 0] = -np.inf
    assert metrics.target_ranks(scores, np.array([4])).tolist() == [10]


def test_nan_raises_on_numpy_and_counts_against_the_model_on_jax():
    scores = np.array([[-np.inf, 1.0, np.nan], [-np.inf, 2.0, 1.0]])
    with pytest.raises(ValueError, match="NaN in 1 rows, the first is row 0"):
        metrics.target_ranks(scores, np.array([1, 1]))
    assert metrics.target_ranks(jnp.asarray(scores), jnp.array([1, 1])).tolist() == [2, 1]
    assert metrics.target_ranks(jnp.asarray(scores), jnp.array([2, 1])).tolist() == [3, 1]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 25))
def test_metrics_match_the_textbook_formulas(ranks, k):
    result = metrics.ranking_metrics(np.array(ranks), ks=(k,))
    hits = [1 <= rank <= k for rank in ranks]
    precision = np.mean([hit / k for hit in hits])
    recall = np.mean(hits)
    f1 = [2 * (h / k) * h / (h / k + h) if h else 0.0 for h in hits]
    gains = [1 / math.log2(1 + rank) if hit else 0.0 for rank, hit in zip(ranks, hits, strict=True)]
    assert result["accuracy@1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert result[f"precision@{k}"] == pytest.approx(precision)
    assert result[f"recall@{k}"] == pytest.approx(recall)
    assert result[f"hr@{k}"] == pytest.approx(recall)
    assert result[f"f1@{k}"] == pytest.approx(np.mean(f1))
    assert result[f"ndcg@{k}"] == pytest.approx(np.mean(gains))
    assert result["mrr"] == pytest.approx(np.mean([1 / rank if rank else 0.0 for rank in ranks]))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_metrics_ignore_the_order_of_targets(ranks):
    forwards, backwards = np.array(ranks), np.array(ranks[::-1])
    assert metrics.ranking_metrics(forwards) == pytest.approx(metrics.ranking_metrics(backwards))


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=1, max_size=40))
def test_groups_add_up_to_the_whole(pairs):
    ranks = np.array([rank for rank, _ in pairs])
    groups = [group for _, group in pairs]
    grouped = metrics.grouped_metrics(ranks, groups)
    whole = metrics.ranking_metrics(ranks)
    assert list(grouped) == sorted(set(groups))
    assert sum(group["num_targets"] for group in grouped.values()) == len(ranks)
    for name, value in whole.items():
        total = sum(group["num_targets"] * group[name] for group in grouped.values())
        assert total / len(ranks) == pytest.approx(value)


def test_standard_error_of_a_hit_rate_is_binomial():
    ranks = np.array([1] * 30 + [9] * 70)
    assert metrics.standard_errors(ranks)["accuracy@1"] == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_repeating_each_target_does_not_shrink_the_clustered_error():
    ranks = np.random.default_rng(0).integers(0, 20, 200)
    single = metrics.standard_errors(ranks)
    repeated = metrics.standard_errors(np.repeat(ranks, 5), clusters=np.repeat(np.arange(200), 5))
    assert repeated == pytest.approx(single)


@pytest.mark.parametrize("num_people", [2, 3, 30])
def test_standard_errors_are_those_of_drawing_few_people_again(num_people):
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(num_people), 20)
    means, variances = [], []
    for _ in range(2000):
        hits = rng.random((num_people, 20)) < rng.random((num_people, 1))
        means.append(hits.mean())
        ranks = np.where(hits, 1, 100).ravel()
        errors = metrics.standard_errors(ranks, (1,), clusters=people)
        variances.append(errors["accuracy@1"] ** 2)
    assert math.sqrt(np.mean(variances)) == pytest.approx(np.std(means), rel=0.06)


def test_one_person_has_no_standard_error():
    errors = metrics.standard_errors(np.array([1, 2, 50]), clusters=np.zeros(3, int))
    assert set(errors) == set(metrics.ranking_metrics(np.array([1])))
    assert all(map(math.isnan, errors.values()))
    assert math.isnan(metrics.standard_errors(np.array([1]))["mrr"])


def test_no_target_gives_nan():
    empty = np.zeros(0, np.int32)
    assert math.isnan(metrics.ranking_metrics(empty)["mrr"])
    assert math.isnan(metrics.standard_errors(empty)["mrr"])
    assert metrics.grouped_metrics(empty, empty) == {}


def test_length_groups_sort_in_order_of_length():
    labels = metrics.length_groups([0, 9, 10, 299, 300, 5000])
    assert labels.tolist() == ["000-009", "000-009", "010-029", "100-299", "300+", "300+"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.target_ranks(np.zeros((2, 3)), np.zeros(3, int)), "same T"),
        (lambda: metrics.target_ranks(np.zeros((1, 3)), np.array([3])), r"0\.\.2"),
        (lambda: metrics.ranking_metrics(np.array([1.5])), "int"),
        (lambda: metrics.ranking_metrics(np.array([-1])), ">= 1"),
        (lambda: metrics.ranking_metrics(np.array([1]), ks=(0,)), "ks must be >= 1"),
        (lambda: metrics.grouped_metrics(np.array([1]), ["a", "b"]), "one label a target"),
        (lambda: metrics.length_groups([1], edges=(5, 5)), "must increase"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
