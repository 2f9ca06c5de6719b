"""The geometry of a pair, which all backends share, worked out pair by pair from its definition."""

import math

import jax
import numpy as np
import pytest

from stt_kernels.attention import geometry

SIZES = {"time": 30, "space": 40, "order": 6, "cycle": 25}  # the cycle's last: an unknown phase
NUM_QUERIES, NUM_KEYS = 17, 23


def make_side(length, seed):
    random = np.random.default_rng(seed)
    coords = random.integers(-1000, 1000, (1, length, 3)).astype(np.float32)
    coords[random.random((1, length)) < 0.2] = np.nan
    phases = random.integers(0, SIZES["cycle"] - 1, (1, length)).astype(np.int32)
    phases[random.random((1, length)) < 0.2] = -1
    return geometry.Side(
        times=random.integers(0, 2**17, (1, length)).astype(np.int32),
        coords=coords,
        phases=phases,
        positions=random.integers(0, 12, (1, length)).astype(np.int32),
        segment_ids=random.integers(0, 3, (1, length)).astype(np.int32),
    )


def time_entry(query, key):
    gap = abs(int(query.times) - int(key.times))
    octave = octave_of(1 + gap)
    upper_half = 1 + gap >= 1.5 * 2**octave
    return min(2 * octave + upper_half, SIZES["time"] - 1)


def space_entry(query, key):
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(query.coords, key.coords, strict=True))
    unknown = SIZES["space"] - 1
    return unknown if math.isnan(squared) else min(octave_of(1 + int(squared)), unknown)


def octave_of(number):
    return number.bit_length() - 1


def order_entry(query, key):
    return min(max(int(query.positions) - int(key.positions), 0), SIZES["order"] - 1)


def cycle_entry(query, key):
    num_phases = SIZES["cycle"] - 1
    if query.phases < 0 or key.phases < 0:
        return num_phases
    return (int(query.phases) - int(key.phases)) % num_phases


def by_pair(answer):
    """Gives `answer(query, key)` of every pair, [L, S]."""
    queries, keys = sides()
    events = [
        [geometry.Side(*(array[0, event] for array in side)) for event in range(length)]
        for side, length in ((queries, NUM_QUERIES), (keys, NUM_KEYS))
    ]
    return np.array([[answer(query, key) for key in events[1]] for query in events[0]])


def sides():
    return make_side(NUM_QUERIES, 1), make_side(NUM_KEYS, 2)


@pytest.mark.parametrize("answer", [time_entry, space_entry, order_entry, cycle_entry])
def test_the_entry_of_a_pair_is_that_of_the_definition(answer):
    name = answer.__name__.removesuffix("_entry")
    queries, keys = jax.tree.map(jax.numpy.asarray, sides())
    found = geometry.table_entries(queries, keys, {name: SIZES[name]})
    expected = by_pair(answer)
    assert list(found) == [name]
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(found[name][0], expected)


def test_entries_come_in_the_order_of_the_sizes():
    backwards = dict(reversed(SIZES.items()))
    queries, keys = jax.tree.map(jax.numpy.asarray, sides())
    assert list(geometry.table_entries(queries, keys, backwards)) == list(backwards)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segments", [True, False])
def test_a_query_may_attend_within_its_segment_and_not_to_what_follows(causal, segments):
    def may(query, key):
        same = query.segment_ids == key.segment_ids and key.segment_ids > 0
        return (same or not segments) and (key.positions <= query.positions or not causal)

    queries, keys = jax.tree.map(jax.numpy.asarray, sides())
    if not segments:
        queries, keys = queries._replace(segment_ids=None), keys._replace(segment_ids=None)
    found = geometry.allowed_pairs(queries, keys, causal)
    if not (causal or segments):
        assert found is None
        return
    np.testing.assert_array_equal(found[0], by_pair(may))
