"""The approximate index finds what the exact pass finds, nearly always, with nearly its numbers."""

import sys

import jax
import numpy as np
import pytest

from benchmarks.bench_realtime import Setup
from stt_jax import approximate
from stt_jax.config import ModelConfig


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"use_boost": True},
        {"use_pointer": False, "use_crowd": False, "habit_share": 0.0},
    ],
    ids=["mixture", "boost", "network alone"],
)
def test_the_index_finds_the_best_items(sources):
    config = ModelConfig(
        width=16, num_heads=2, num_layers=1, attention="reference", use_sequel=False, **sources
    )
    setup = Setup(3000, 16, num_people=8, config=config)
    cache = setup.append(setup.cache())
    exact = jax.device_get(setup.score(cache))
    index = approximate.ItemIndex(setup.scorer)
    found = jax.device_get(
        approximate.score(
            setup.model, setup.params, setup.scorer, index, cache, setup.people, setup.requests,
            k=10, num_candidates=300,
        )
    )  # fmt: skip
    same = [len(set(a) & set(b)) for a, b in zip(exact.items, found.items, strict=True)]
    assert np.mean(same) >= 9
    assert all(len(set(row)) == 10 for row in found.items)
    for row in range(8):
        expected = dict(zip(exact.items[row], exact.probabilities[row], strict=True))
        for item, probability in zip(found.items[row], found.probabilities[row], strict=True):
            if item in expected:
                assert abs(probability / expected[item] - 1) < 0.2
    assert index.search(np.zeros((1, 16), np.float32), 5000).shape == (1, 3000)


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
