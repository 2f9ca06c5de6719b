"""Dropout by hashed bits: the right share, no pattern, and the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.model.dropout import Dropout, hashed_bits

SHAPE = (16, 128, 64)


@pytest.fixture(scope="module")
def bits():
    """Of the keys of four steps."""
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(4)]
    words = [jax.random.bits(key, (2,), jnp.uint32) for key in keys]
    return np.stack([np.asarray(hashed_bits(pair, SHAPE)) for pair in words])


def test_every_bit_is_set_half_of_the_time(bits):
    for bit in range(32):
        rates = ((bits >> bit) & 1).mean((1, 2, 3))
        np.testing.assert_allclose(rates, 0.5, atol=0.007)  # 5 standard errors


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("lag", [1, 2, 4])
def test_neighbours_do_not_go_together(bits, axis, lag):
    kept = bits < 0.2 * 2**32
    pairs = kept & np.roll(kept, lag, axis)
    np.testing.assert_allclose(pairs.mean((1, 2, 3)), 0.04, atol=0.003)


def test_steps_do_not_go_together(bits):
    kept = bits < 0.2 * 2**32
    for first in range(4):
        for second in range(first):
            assert (kept[first] & kept[second]).mean() == pytest.approx(0.04, abs=0.003)


def test_a_part_of_the_shape_has_the_bits_of_the_whole():
    words = jnp.asarray([3, 5], jnp.uint32)
    np.testing.assert_array_equal(hashed_bits(words, (8, 10))[:4], hashed_bits(words, (4, 10)))


def test_keeps_the_mean_and_drops_the_rate():
    ones = jnp.ones(SHAPE)
    dropped = Dropout(0.3).apply({}, ones, deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert float((dropped == 0).mean()) == pytest.approx(0.3, abs=0.007)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.7, rtol=1e-6)


def test_steps_and_layers_draw_anew_and_the_same_key_the_same():
    def draw(key):
        return np.asarray(
            Dropout(0.5).apply({}, jnp.ones((64, 64)), deterministic=False, rngs={"dropout": key})
        )

    first, again, other = draw(jax.random.key(1)), draw(jax.random.key(1)), draw(jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() == pytest.approx(0.5, abs=0.05)


def test_deterministic_needs_no_key_and_changes_nothing():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, deterministic=True), x)


def test_a_rate_next_to_one_drops_nearly_all():
    dropout = Dropout(1 - 1e-10)
    found = dropout.apply(
        {}, jnp.ones((100,)), deterministic=False, rngs={"dropout": jax.random.key(0)}
    )
    assert not found.any()
