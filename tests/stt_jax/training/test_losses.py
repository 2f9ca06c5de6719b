import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import TrainingConfig
from stt_jax.model.crowd import Boosts
from stt_jax.model.head import NO_LOG_MASS, NUM_DISTANCES, ItemScorer
from stt_jax.model.mixture import Prediction
from stt_jax.model.precision import products
from stt_jax.training import tiles
from stt_jax.training.losses import (
    chunked_softmax,
    full_softmax,
    make_softmax,
    mixture_loss,
    sampled_softmax,
    strata,
)

V, E, B, R = 7, 4, 2, 5


def prediction(num_pointers=2, V=V, distances=True, boosts=None):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    rows = V + 3  # the unknown item in front, two of padding behind
    scorer = ItemScorer(
        vectors=normal(rows, E),
        bias=normal(rows),
        is_item=jnp.asarray((np.arange(rows) >= 1) & (np.arange(rows) <= V)),
        categories=jnp.asarray(rng.integers(0, 3, rows), jnp.int32),
        coords=1000 * normal(rows, 3),
        distance_table=normal(3, NUM_DISTANCES) if distances else None,
        num_items=V,
    )
    return Prediction(
        normal(B, R, E),
        1000 * normal(B, R, 3),
        scorer,
        jax.nn.log_softmax(normal(B, R, 1 + num_pointers)),
        jnp.log(jnp.asarray(rng.random((B, R, num_pointers)), jnp.float32)),
        boosts,
    )


def test_loss_is_the_mixture_of_the_docstring():
    p = prediction()
    targets = jnp.asarray(np.random.default_rng(1).integers(0, V + 1, (B, R)), jnp.int32)
    weights = jnp.asarray(np.random.default_rng(2).random(V + 3), jnp.float32)
    loss, sums = mixture_loss(
        p, targets, label_smoothing=0.2, generate_weight=0.5, target_weights=weights
    )
    logits = p.scorer.logits(p.queries.reshape(-1, E), p.places.reshape(-1, 3))
    log_probs = np.asarray(jax.nn.log_softmax(logits[:, 1 : V + 1]), np.float64)
    gates = np.exp(np.asarray(p.log_gates, np.float64)).reshape(-1, 3)
    masses = np.exp(np.asarray(p.target_log_masses, np.float64)).reshape(-1, 2)
    terms, counted = [], []
    for n, target in enumerate(np.asarray(targets).reshape(-1)):
        if target > 0:
            likely = gates[n] @ [np.exp(log_probs[n, target - 1]), *masses[n]]
            term = -0.8 * np.log(likely) - 0.2 * log_probs[n].mean()
            terms.append(term - 0.5 * log_probs[n, target - 1])
            counted.append(float(weights[target]))
    np.testing.assert_allclose(loss, np.mean(np.multiply(terms, counted)), rtol=1e-5)
    assert float(sums["requests"]) == len(terms)


def test_what_a_target_counts_does_not_depend_on_what_else_is_in_the_batch():
    p = prediction()
    rare, common = 1, 2
    weights = jnp.ones(V + 3).at[rare].set(4.0).at[common].set(0.5)
    at = jnp.arange(B * R).reshape(B, R)

    def total(targets, weights):
        loss, sums = mixture_loss(p, targets, label_smoothing=0.1, target_weights=weights)
        return float(loss * sums["requests"])

    alone = {item: jnp.where(at % 2 == item % 2, item, 0) for item in (rare, common)}
    for item, targets in alone.items():
        unweighted = total(targets, None)
        np.testing.assert_allclose(total(targets, weights), weights[item] * unweighted, rtol=1e-5)
        loss, _ = mixture_loss(p, targets, label_smoothing=0.1, target_weights=weights)
        plain, _ = mixture_loss(p, targets, label_smoothing=0.1)
        np.testing.assert_allclose(loss, weights[item] * plain, rtol=1e-5)
    together = total(alone[rare] + alone[common], weights)
    np.testing.assert_allclose(together, sum(total(t, weights) for t in alone.values()), rtol=1e-5)


@pytest.mark.parametrize("loss", ["full", "chunked", "sampled"])
def test_boosts_are_added_to_the_logits_of_every_softmax(loss):
    rng = np.random.default_rng(3)
    items = rng.integers(0, V + 1, (B, R, 6))
    items[0, 0] = 2  # all the same
    added = np.zeros((B, R, V + 3))
    of_entries = rng.normal(size=items.shape)
    for at in np.ndindex(items.shape):
        added[*at[:2], items[at]] += of_entries[at]
    added[..., 0] = 0
    boosts = Boosts(
        jnp.asarray(items, jnp.int32),
        jnp.asarray(np.take_along_axis(added, items, axis=-1), jnp.float32),
        jnp.asarray((items[..., None] == items[..., None, :]).sum(-1), jnp.float32),
    )
    p = prediction(boosts=boosts)
    targets = some_targets(V)
    logits = p.scorer.logits(p.queries.reshape(-1, E), p.places.reshape(-1, 3))
    log_probs = jax.nn.log_softmax((logits + added.reshape(B * R, -1))[:, 1 : V + 1])
    config = TrainingConfig(loss=loss, num_negatives=V, loss_chunk_items=3)
    softmax = make_softmax(config, jax.random.key(0))
    alone = jnp.where(jnp.arange(3) == 0, 0.0, NO_LOG_MASS)  # generating only
    p = p.replace(log_gates=jnp.broadcast_to(alone, p.log_gates.shape))
    found, _ = mixture_loss(p, targets, label_smoothing=0.2, softmax=softmax)
    rows, known = np.arange(B * R), np.asarray(targets).reshape(-1) > 0
    of_target = log_probs[rows, np.asarray(targets).reshape(-1) - 1]
    expected = -(0.8 * of_target + 0.2 * log_probs.mean(-1))[known].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["full", "chunked", "sampled"])
@pytest.mark.parametrize("distances", [True, False])
def test_rows_of_forgotten_items_are_as_if_they_were_not_there(loss, distances):
    p = prediction(distances=distances)
    forgotten, rows = 3, jnp.asarray([row for row in range(V + 3) if row != 3])
    holed = p.scorer.replace(
        is_item=p.scorer.is_item.at[forgotten].set(False), num_items=V - 1, num_forgotten=1
    )
    without = dataclasses.replace(p.scorer.take(rows), num_items=V - 1)
    targets = some_targets(V)
    targets = jnp.where(targets == forgotten, 0, targets)
    renumbered = jnp.where(targets > forgotten, targets - 1, targets)
    softmax = make_softmax(
        TrainingConfig(loss=loss, num_negatives=V, loss_chunk_items=3), jax.random.key(0)
    )
    found, expected = (
        mixture_loss(p.replace(scorer=scorer), wanted, label_smoothing=0.2, softmax=softmax)[0]
        for scorer, wanted in ((holed, targets), (without, renumbered))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_unknown_targets_have_no_gradient():
    p = prediction()
    targets = jnp.zeros((B, R), jnp.int32).at[0, 0].set(3)

    def loss(queries):
        return mixture_loss(p.replace(queries=queries), targets, label_smoothing=0.1)[0]

    gradient = np.array(jax.grad(loss)(p.queries))
    assert np.any(gradient[0, 0] != 0)
    gradient[0, 0] = 0
    assert np.all(gradient == 0)


def test_a_batch_without_targets_has_loss_zero():
    loss, _ = mixture_loss(prediction(), jnp.zeros((B, R), jnp.int32), label_smoothing=0.1)
    assert float(loss) == 0


def test_without_a_pointer_it_is_cross_entropy():
    p = prediction(num_pointers=0)
    targets = jnp.ones((B, R), jnp.int32)
    logits = p.scorer.logits(p.queries.reshape(-1, E), p.places.reshape(-1, 3))
    loss, _ = mixture_loss(p, targets, label_smoothing=0.0)
    np.testing.assert_allclose(loss, -jax.nn.log_softmax(logits)[:, 1].mean(), rtol=1e-5)


def test_an_unknown_place_uses_the_last_distance():
    scorer = prediction().scorer
    unknown = scorer.logits(jnp.zeros((1, E)), jnp.full((1, 3), jnp.nan))
    expected = scorer.bias + scorer.distance_table[scorer.categories, -1]
    np.testing.assert_allclose(unknown[0, 1 : V + 1], expected[1 : V + 1], rtol=1e-6)
    assert np.all(np.asarray(unknown)[0, [0, V + 1, V + 2]] < -1e8)


def some_targets(num_items):
    """With an unknown one, a doubled one, the first and the last item."""
    targets = np.random.default_rng(1).integers(1, num_items + 1, (B, R))
    targets[0, :4] = [0, 1, num_items, num_items]
    return jnp.asarray(targets, jnp.int32)


def loss_and_gradients(p, targets, softmax):
    """Of everything that learns: queries, vectors, bias, distance table, gates, pointers."""

    def loss(queries, vectors, bias, table, log_gates, log_masses):
        scorer = p.scorer.replace(vectors=vectors, bias=bias, distance_table=table)
        learned = p.replace(
            queries=queries, scorer=scorer, log_gates=log_gates, target_log_masses=log_masses
        )
        return mixture_loss(learned, targets, label_smoothing=0.1, softmax=softmax)

    s = p.scorer
    arguments = (p.queries, s.vectors, s.bias, s.distance_table, p.log_gates, p.target_log_masses)
    return jax.jit(jax.value_and_grad(loss, argnums=range(6), has_aux=True))(*arguments)


def assert_close(left, right, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), left, right
    )


@pytest.mark.parametrize(
    ("chunk_items", "num_pointers", "distances"),
    [(1, 2, True), (8, 1, True), (1000, 2, True), (10, 0, False)],
)
def test_chunked_loss_and_gradients_equal_the_dense_ones(chunk_items, num_pointers, distances):
    """29 items: chunks that divide them, that leave a rest, and one that is longer than all."""
    p = prediction(num_pointers, V=29, distances=distances)
    targets = some_targets(29)
    dense = loss_and_gradients(p, targets, full_softmax)
    softmax = functools.partial(chunked_softmax, chunk_items=chunk_items)
    assert_close(loss_and_gradients(p, targets, softmax), dense)


@pytest.mark.parametrize(("tile_logits", "distances"), [(24, True), (20, False), (1, True)])
def test_tiles_of_few_queries_give_the_dense_numbers(tile_logits, distances, monkeypatch):
    """Blocks of queries that divide them, that leave a rest, and of one query."""
    monkeypatch.setattr(tiles, "TILE_LOGITS", tile_logits)
    p = prediction(V=29, distances=distances)
    targets = some_targets(29)
    softmax = functools.partial(chunked_softmax, chunk_items=8)
    assert_close(
        loss_and_gradients(p, targets, softmax), loss_and_gradients(p, targets, full_softmax)
    )


def test_chunked_loss_of_huge_logits_is_finite():
    p = prediction(V=29)
    p = p.replace(queries=300 * p.queries)
    softmax = functools.partial(chunked_softmax, chunk_items=8)
    dense = loss_and_gradients(p, some_targets(29), full_softmax)
    chunked = loss_and_gradients(p, some_targets(29), softmax)
    assert np.isfinite(chunked[0][0])
    assert_close(chunked, dense, 1e-4)  # float32 rounds logits of 1,000 to 1e-4


def temporary_bytes(num_items, softmax, *, num_requests=512, width=8):
    """Of the compiled loss and gradients, without their inputs and outputs."""

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    def loss(queries, vectors, bias, table, categories, coords, places, targets):
        is_item = jnp.arange(num_items) > 0
        scorer = ItemScorer(vectors, bias, is_item, categories, coords, table, num_items - 1)
        sure = jnp.zeros((1, num_requests, 1))
        p = Prediction(queries, places, scorer, sure, sure[..., 1:], None)
        return mixture_loss(p, targets, label_smoothing=0.1, softmax=softmax)[0]

    compiled = (
        jax.jit(jax.grad(loss, argnums=range(4)))
        .lower(
            shape(1, num_requests, width),
            shape(num_items, width),
            shape(num_items),
            shape(3, NUM_DISTANCES),
            shape(num_items, dtype=jnp.int32),
            shape(num_items, 3),
            shape(1, num_requests, 3),
            shape(1, num_requests, dtype=jnp.int32),
        )
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("loss", ["chunked", "sampled"])
def test_memory_grows_with_the_parameters_and_never_with_requests_times_items(loss):
    config = TrainingConfig(loss=loss, loss_chunk_items=128, num_negatives=128)
    softmax = make_softmax(config, jax.random.key(0))
    small, large = 4_096, 65_536
    growth = temporary_bytes(large, softmax) - temporary_bytes(small, softmax)
    # A copy of vectors, bias, coords and categories: 13 numbers an item; logits would be 512.
    assert growth <= (large - small) * 13 * 4
    dense = temporary_bytes(small, full_softmax)
    assert dense >= small * 512 * 4


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("log_uniform", [False, True])
def test_with_all_items_drawn_the_sampled_loss_is_the_full_one(in_batch, log_uniform):
    p, targets = prediction(V=29), some_targets(29)
    softmax = functools.partial(
        sampled_softmax,
        key=jax.random.key(0),
        num_negatives=1000,
        log_uniform=log_uniform,
        in_batch=in_batch,
    )
    dense = loss_and_gradients(p, targets, full_softmax)
    assert_close(loss_and_gradients(p, targets, softmax), dense)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("log_uniform", [False, True])
def test_the_sampled_normalizer_and_mean_are_right_on_average(in_batch, log_uniform):
    """Averaged over draws: exp(logit - log p) is the sum of the exponentials of all logits."""
    p, targets = prediction(V=60), some_targets(60).reshape(-1)
    queries, places = p.queries.reshape(-1, E), p.places.reshape(-1, 3)

    def normalizer_and_mean(key):
        log_normalizers, _, mean_logits = sampled_softmax(
            p.scorer,
            queries,
            places,
            targets,
            key=key,
            num_negatives=12,
            log_uniform=log_uniform,
            in_batch=in_batch,
        )
        return jnp.exp(log_normalizers), mean_logits

    draws = jax.jit(jax.vmap(normalizer_and_mean))(jax.random.split(jax.random.key(0), 1000))
    logits = p.scorer.logits(queries, places)[:, 1:61]
    for drawn, true in zip(draws, (jnp.exp(logits).sum(-1), logits.mean(-1)), strict=True):
        error = np.asarray(drawn).mean(0) - np.asarray(true)
        deviation = np.asarray(drawn).std(0) / np.sqrt(1000)
        assert np.all((np.abs(error) < 4.5 * deviation + 1e-5)[np.asarray(targets) > 0])


@pytest.mark.parametrize("log_uniform", [False, True])
@pytest.mark.parametrize(("num_items", "num_strata"), [(1, 1), (7, 3), (100, 99), (10**6, 1024)])
def test_strata_cover_every_item_once(num_items, num_strata, log_uniform):
    edges = strata(num_items, num_strata, log_uniform=log_uniform)
    widths = np.diff(edges)
    assert len(widths) == num_strata
    assert edges[0] == 0
    assert edges[-1] == num_items
    assert widths.min() >= 1
    if not log_uniform:
        assert widths.max() - widths.min() <= 1


def test_log_uniform_strata_widen_with_rank():
    widths = np.diff(strata(10**6, 1024, log_uniform=True))
    assert np.all(widths[:80] == 1)
    ratios = np.cumsum(widths)[900:] / np.cumsum(widths)[899:-1]
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-3)


@pytest.mark.parametrize("name", ["loss_chunk_items", "num_negatives"])
def test_a_count_of_zero_names_its_flag(name):
    with pytest.raises(ValueError, match=f"--{name}=0 must be positive"):
        TrainingConfig(**{name: 0})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_logits_are_products_in_the_dtype(dtype):
    """Close to float64, and no product of float32 where the model is not."""
    rng = np.random.default_rng(0)
    queries, vectors, gradient = (
        rng.normal(size=shape).astype(dtype) for shape in ((9, 8), (11, 8), (9, 11))
    )

    def pull(queries, vectors, gradient):
        return jax.vjp(products, queries, vectors)[1](gradient.astype(jnp.float32))

    of_queries, of_vectors = pull(*map(jnp.asarray, (queries, vectors, gradient)))
    exact = [array.astype(np.float64) for array in (queries, vectors, gradient)]
    close = 1e-5 if dtype == "float32" else 3e-2
    np.testing.assert_allclose(np.asarray(of_queries, np.float64), exact[2] @ exact[1], atol=close)
    np.testing.assert_allclose(
        np.asarray(of_vectors, np.float64), exact[2].T @ exact[0], atol=close
    )
    assert of_queries.dtype == of_vectors.dtype == dtype
    program = jax.jit(pull).lower(queries, vectors, gradient).as_text()
    operands = re.findall(r"dot_general .*: \((.*)\) ->", program)
    assert len(operands) >= 2
    assert all(("f32" in types) == (dtype == "float32") for types in operands)
