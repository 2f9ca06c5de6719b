import types

import jax.numpy as jnp
import numpy as np

from stt_jax.model.segments import at_tokens, last_items, previous_in_segment
from tests.stt_jax.model.test_recurrence import random_rows


def test_what_came_before_never_crosses_a_segment():
    ids, segments = random_rows()
    vectors = np.random.default_rng(1).normal(size=(*ids.shape, 4)).astype(jnp.bfloat16)
    same = segments[:, 1:] == segments[:, :-1]
    for values in (ids, vectors):
        before = previous_in_segment(jnp.asarray(values), jnp.asarray(segments))
        assert before.dtype == values.dtype
        before = np.asarray(before)
        assert np.all(before[:, 0] == 0)
        np.testing.assert_array_equal(before[:, 1:][same], values[:, :-1][same])
        assert np.all(before[:, 1:][~same] == 0)


def test_a_request_without_events_takes_nothing():
    values = jnp.arange(6).reshape(2, 3) + 1
    taken = at_tokens(values, jnp.array([[-1, 0], [2, -1]]))
    np.testing.assert_array_equal(taken, [[0, 1], [6, 0]])


def test_the_last_items_of_a_request_are_of_its_own_segment():
    history = types.SimpleNamespace(
        items=jnp.array([[5, 6, 7, 8]]), segment_ids=jnp.array([[1, 1, 2, 2]])
    )
    requests = types.SimpleNamespace(
        last_tokens=jnp.array([[1, 2, 3, -1]]), segment_ids=jnp.array([[1, 2, 2, 1]])
    )
    np.testing.assert_array_equal(last_items(history, requests), [[6, 7, 8, 0]])
    np.testing.assert_array_equal(last_items(history, requests, 1), [[5, 0, 7, 0]])
