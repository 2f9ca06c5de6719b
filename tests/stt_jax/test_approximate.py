"""The approximate index finds what the exact pass finds, nearly always, with nearly its numbers."""

import sys

import jax
import numpy as np
import pytest

from benchmarks.bench_realtime import Setup
from stt_jax import approximate, session
from stt_jax.config import ModelConfig
from stt_jax.model.crowd import Boosts
from stt_jax.model.mixture import Answer


def ranked_by_both(num_items, k, num_candidates, **changes):
    config = ModelConfig(
        width=16, num_heads=2, num_layers=1, attention="reference", use_sequel=False, **changes
    )
    setup = Setup(num_items, 16, num_people=8, config=config)
    cache = setup.append(setup.cache())
    asked = (setup.model, setup.params, setup.scorer)
    exact = session.score(*asked, cache, setup.people, setup.requests, None, k=k)
    index = approximate.ItemIndex(setup.scorer)
    found = approximate.score(
        *asked, index, cache, setup.people, setup.requests, k=k, num_candidates=num_candidates
    )
    return jax.device_get((exact, found))


SOURCES = {
    "mixture": {},
    "boost": {"use_boost": True},
    "network alone": {"use_pointer": False, "use_crowd": False, "habit_share": 0.0},
}


def test_what_is_boosted_has_a_row_of_its_own_too():
    items = np.array([[[5, 0, 7, 5]]], np.int32)
    boosts = Boosts(np.array([[[9, 5]]], np.int32), np.ones((1, 1, 2)), np.ones((1, 1, 2)))
    answer = Answer(None, None, None, items, None, boosts)
    ids, candidates, answer = approximate._few_rows(np.array([[7, 2]], np.int32), answer)
    for rows, wanted in (
        (candidates, [7, 2]),
        (answer.items[:, 0], [5, 0, 7, 5]),
        (answer.boosts.items[:, 0], [9, 5]),
    ):
        assert ids[0][rows[0]].tolist() == wanted
    assert answer.items[0, 0, 1] == 0, "no item stays no item"


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_with_every_item_a_candidate_it_is_the_exact_answer(sources):
    exact, found = ranked_by_both(200, 200, 200, **sources)
    for row in range(8):
        assert sorted(found.items[row]) == list(range(1, 201))
        expected = dict(zip(exact.items[row], exact.probabilities[row], strict=True))
        wanted = [expected[item] for item in found.items[row]]
        np.testing.assert_allclose(found.probabilities[row], wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize(
    ("num_items", "tolerance"), [(3000, 1e-4), (6000, 0.2)], ids=["all sampled", "some sampled"]
)
def test_the_index_finds_the_best_items(num_items, tolerance, sources):
    exact, found = ranked_by_both(num_items, 10, 300, **sources)
    same = [len(set(a) & set(b)) for a, b in zip(exact.items, found.items, strict=True)]
    assert np.mean(same) >= 9
    assert all(len(set(row)) == 10 for row in found.items)
    for row in range(8):
        expected = dict(zip(exact.items[row], exact.probabilities[row], strict=True))
        for item, probability in zip(found.items[row], found.probabilities[row], strict=True):
            if item in expected:
                assert probability == pytest.approx(expected[item], rel=tolerance)


def test_fewer_candidates_than_are_wanted_are_refused():
    with pytest.raises(ValueError, match="num_candidates=5 must be at least k=6"):
        approximate.score(*[None] * 7, k=6, num_candidates=5)


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'stt_jax\[ann\]'"):
        approximate.ItemIndex(None)


@pytest.mark.parametrize(("num_items", "width"), [(20, 16), (1023, 8), (1024, 8), (5000, 6)])
def test_all_candidates_are_found_once(num_items, width):
    config = ModelConfig(
        width=width, num_heads=2, num_layers=1, attention="reference", use_sequel=False
    )
    index = approximate.ItemIndex(Setup(num_items, 16, config=config).scorer)
    found = index.search(np.ones((2, width), np.float32), num_items)
    assert np.sort(found, axis=1).tolist() == [list(range(1, num_items + 1))] * 2


def test_a_small_catalogue_is_searched_exactly():
    config = ModelConfig(
        width=8, num_heads=2, num_layers=1, attention="reference", use_sequel=False
    )
    scorer = Setup(500, 16, config=config).scorer
    queries = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    logits = queries @ np.asarray(scorer.vectors).T + np.asarray(scorer.bias)
    logits[:, ~np.asarray(scorer.is_item)] = -np.inf
    found = approximate.ItemIndex(scorer).search(queries, 7)
    assert found.tolist() == np.argsort(-logits, axis=1)[:, :7].tolist()


def test_of_items_that_are_all_alike_none_is_found_twice():
    scorer = Setup(1500, 16, num_people=1).scorer
    alike = scorer.replace(vectors=0 * scorer.vectors, bias=0 * scorer.bias)
    found = approximate.ItemIndex(alike).search(np.zeros((2, scorer.vectors.shape[1])), 256)
    assert found.shape == (2, 256)
    assert [len(np.unique(row)) for row in found] == [256, 256]
