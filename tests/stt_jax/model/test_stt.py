"""What the whole model promises, whatever its parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import ModelConfig, TrainingConfig
from stt_jax.data.gather import gather_history, gather_requests
from stt_jax.data.newitems import add_items
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.data.windows import training_windows
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.losses import make_softmax, mixture_loss
from stt_jax.training.ranks import in_mode
from stt_jax.training.run import model_sizes
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=8, seed=5, has_numbers=True)
CONFIG = ModelConfig(width=16, num_heads=2, num_layers=1, dropout=0.5, attention="reference")
# All that any variant looks at.
ITEMS = jax.tree.map(
    jnp.asarray,
    model_catalogue(
        LOG, dataclasses.replace(CONFIG, use_popularity=True, succession_half_lives_h=(24.0,))
    ),
)


def batch():
    source = TrainingBatches(LOG, window=16, requests=8, batch_rows=3, seed=0)
    return jax.tree.map(jnp.asarray, source[0])


@functools.cache
def make(config=CONFIG):
    """A model with random parameters everywhere, the zero-initialised tables included."""
    model = SpatiotemporalTransformer(config, model_sizes(LOG))
    history, requests = batch()
    init = jax.jit(model.init, static_argnames="deterministic")
    params = init(jax.random.key(0), ITEMS, history, requests, deterministic=True)["params"]
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(treedef, leaves)


@functools.partial(jax.jit, static_argnums=0)
def probabilities(model, params, history, requests):
    states = model.apply({"params": params}, history, deterministic=True, method=model.encode)
    return model.apply(
        {"params": params}, ITEMS, history, requests, states, method=model.item_probabilities
    )


@functools.partial(jax.jit, static_argnums=0)
def encode(model, params, history):
    return model.apply({"params": params}, history, deterministic=True, method=model.encode)


@functools.partial(jax.jit, static_argnums=0)
def predict(model, params, history, requests, items=ITEMS):
    return model.apply({"params": params}, items, history, requests, deterministic=True)


def holding_nothing_out(items):
    """The catalogue whose relations tell training what they tell a service."""

    def whole(relation):
        return relation.replace(held_out_shares=relation.shares, held_out_counts=relation.counts)

    return items.replace(
        relations={name: whole(relation) for name, relation in items.relations.items()}
    )


VARIANTS = {
    "whole": {},
    "boosted": {"use_boost": True, "succession_half_lives_h": (24.0,)},
    "normed": {"use_event_norm": True},
    "blind": {"use_time": False, "use_place": False, "use_sequel": False},
    "bare": {
        "use_gate": False,
        "use_decoder": False,
        "use_pointer": False,
        "use_person": False,
        "use_crowd": False,
        "use_popularity": True,
    },
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS.keys())
def test_scores_are_probabilities_and_the_loss_sees_the_same_ones(change):
    model, params = make(dataclasses.replace(CONFIG, **change))
    history, requests = batch()
    p = probabilities(model, params, history, requests)
    asked = np.asarray(requests.segment_ids) > 0
    if model.config.use_pointer:
        # A pointer can hold mass on unknown items, which are never recommended, and a list of
        # related items what it cut off.
        assert np.all(np.asarray(p.sum(-1))[asked] < 1 + 1e-5)
    else:
        np.testing.assert_allclose(np.asarray(p.sum(-1))[asked], 1, atol=1e-5)
    assert np.all(np.asarray(p[..., 0]) == 0)
    prediction = predict(model, params, history, requests, holding_nothing_out(ITEMS))
    queries, places = prediction.queries.reshape(-1, 16), prediction.places.reshape(-1, 3)
    logits = prediction.scorer.logits(queries, places)
    if prediction.boosts is not None:
        logits = logits + prediction.boosts.dense(logits.shape[-1]).reshape(logits.shape)
    generated = jax.nn.softmax(logits)
    targets = requests.targets
    target = jnp.take_along_axis(generated, targets.reshape(-1, 1), axis=-1).reshape(targets.shape)
    gates = jnp.exp(prediction.log_gates)
    target = gates[..., 0] * target
    target = target + (gates[..., 1:] * jnp.exp(prediction.target_log_masses)).sum(-1)
    expected = jnp.take_along_axis(p, requests.targets[..., None], axis=-1)[..., 0]
    known = asked & (np.asarray(requests.targets) > 0)
    np.testing.assert_allclose(np.asarray(target)[known], np.asarray(expected)[known], rtol=2e-4)


def test_generating_begins_at_the_popularity_of_the_items_and_of_new_ones_at_its_mean():
    config = dataclasses.replace(CONFIG, **VARIANTS["bare"])
    model, params = make(config)
    generate = jax.tree.map(jnp.zeros_like, params["generate"])
    log = add_items(LOG, ["new"])
    items = jax.tree.map(jnp.asarray, model_catalogue(log, config))
    scorer = model.apply(
        {"params": {**params, "generate": generate}}, items, method=model.item_scorer
    )
    counts = LOG.item_train_counts[1:]
    np.testing.assert_allclose(
        np.exp(scorer.bias[1 : LOG.num_items + 1]),
        (counts + 1) / (counts.sum() + LOG.num_items),
        rtol=1e-5,
    )
    assert scorer.bias[LOG.num_items + 1] == scorer.bias[0] < scorer.bias[1:-1].max()


def test_packed_rows_equal_separate_rows():
    model, params = make()
    windows = training_windows(LOG, window=16, requests=8)
    chosen = [w for w in range(len(windows)) if windows.num_tokens[w] <= 8][:2]
    packed, layout = gather_history(LOG, windows, [np.array(chosen)], row_tokens=16)
    packed_requests = gather_requests(LOG, layout, (1, 16))
    p = probabilities(model, params, packed, packed_requests)[0]
    at = 0
    for index in chosen:
        alone, layout = gather_history(LOG, windows, [np.array([index])], row_tokens=16)
        alone_requests = gather_requests(LOG, layout, (1, 16))
        n = int(windows.num_requests[index])
        expected = probabilities(model, params, alone, alone_requests)[0, :n]
        np.testing.assert_allclose(p[at : at + n], expected, atol=1e-5)
        at += n


def test_padding_never_changes_scores():
    model, params = make()
    windows = training_windows(LOG, window=16, requests=8)
    rows = [np.array([0])]
    results = []
    for row_tokens in (16, 40):
        history, layout = gather_history(LOG, windows, rows, row_tokens=row_tokens)
        requests = gather_requests(LOG, layout, (1, 8))
        results.append(probabilities(model, params, history, requests))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_future_events_have_no_effect_on_states_and_no_gradient():
    model, params = make(dataclasses.replace(CONFIG, num_layers=2))
    history, _ = batch()
    cut = 5
    changed = history.replace(
        items=history.items.at[:, cut:].set(1),
        times=history.times.at[:, cut:].add(1000),
        coords=history.coords.at[:, cut:].add(10.0),
    )
    np.testing.assert_array_equal(
        encode(model, params, history)[:, :cut], encode(model, params, changed)[:, :cut]
    )

    def early(coords_shift):
        shifted = history.replace(origins=history.origins + coords_shift)
        return encode(model, params, shifted)[:, :cut].sum()

    gradient = jax.grad(early)(jnp.zeros_like(history.origins))
    assert np.all(np.asarray(gradient[:, cut:]) == 0)
    assert np.any(np.asarray(gradient[:, :cut]) != 0)


def test_states_do_not_depend_on_the_request():
    """What makes a cached state exact: encode takes no request at all, and hiding is late."""
    model, params = make()
    history, requests = batch()
    known = probabilities(model, params, history, requests)
    hidden = probabilities(model, params, history, in_mode(requests, "unknown"))
    assert np.abs(np.asarray(known - hidden)).max() > 1e-4


def test_an_unknown_time_cannot_be_felt():
    model, params = make()
    history, requests = batch()
    hidden = in_mode(requests, "unknown")
    moved = hidden.replace(times=hidden.times + 12_345, phases=(hidden.phases + 7) % 168)
    np.testing.assert_array_equal(
        probabilities(model, params, history, hidden), probabilities(model, params, history, moved)
    )


def test_a_model_blind_to_time_and_place_cannot_feel_them():
    model, params = make(dataclasses.replace(CONFIG, use_time=False, use_place=False))
    history, requests = batch()
    moved = history.replace(
        times=history.times * 3,
        gaps_s=history.gaps_s * 5,
        phases=(history.phases + 11) % 168,
        coords=history.coords + 777.0,
    )
    np.testing.assert_array_equal(
        probabilities(model, params, history, requests),
        probabilities(model, params, moved, requests.replace(times=requests.times * 3)),
    )


def test_blocks_that_see_the_order_learn_from_it():
    history, requests = batch()
    config = dataclasses.replace(CONFIG, use_time=False, use_pointer=False, use_crowd=False)

    def order_gradients(config):
        model, params = make(config)

        def total(params):
            return jnp.sum(jnp.square(probabilities(model, params, history, requests)))

        paths = jax.tree_util.tree_leaves_with_path(jax.grad(total)(params))
        return [leaf for path, leaf in paths if "order_table" in jax.tree_util.keystr(path)]

    assert not order_gradients(config)
    found = order_gradients(dataclasses.replace(config, use_order=True))
    assert len(found) == 2  # of the block and of the decoder
    assert all(jnp.abs(leaf).max() > 0 for leaf in found)


def test_products_of_float32_keep_their_digits_on_every_device():
    config = dataclasses.replace(CONFIG, attention="xla", use_boost=True)
    model, params = make(config)
    history, requests = batch()
    softmax = make_softmax(TrainingConfig(loss="chunked", loss_chunk_items=16), jax.random.key(0))

    def loss(params):
        prediction = predict(model, params, history, requests)
        return mixture_loss(prediction, requests.targets, label_smoothing=0.1, softmax=softmax)[0]

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 20
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_a_request_without_history_gets_finite_scores():
    model, params = make()
    history, requests = batch()
    empty = requests.replace(last_tokens=jnp.full_like(requests.last_tokens, -1))
    p = np.asarray(probabilities(model, params, history, empty))
    assert np.all(np.isfinite(p))

    def loss(params):
        prediction = predict(model, params, history, empty)
        return mixture_loss(prediction, empty.targets, label_smoothing=0.1)[0]

    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(jax.grad(loss)(params)))


def test_reference_and_tiled_attention_agree_in_the_whole_model():
    config = dataclasses.replace(CONFIG, attention="xla")
    model, params = make()
    history, requests = batch()
    np.testing.assert_allclose(
        probabilities(model, params, history, requests),
        probabilities(make(config)[0], params, history, requests),
        atol=1e-5,
    )


@pytest.mark.parametrize("loss", ["full", "chunked", "sampled"])
def test_an_id_that_is_left_out_of_a_step_is_so_everywhere_in_it(loss):
    changes = dict(id_dropout=0.4, use_sequel=False, use_crowd=False)
    model, params = make(dataclasses.replace(CONFIG, **changes))
    softmax = make_softmax(
        TrainingConfig(loss=loss, num_negatives=LOG.num_items), jax.random.key(1)
    )

    @jax.jit
    def gradients(params, key):
        def total(params):
            prediction = model.apply(
                {"params": params}, ITEMS, *batch(), deterministic=False, rngs={"dropout": key}
            )
            return mixture_loss(
                prediction, batch()[1].targets, label_smoothing=0.1, softmax=softmax
            )[0]

        return jax.grad(total)(params)

    left_out = []
    for seed in range(3):
        grads = jax.device_get(gradients(params, jax.random.key(seed)))
        ids = grads["items"]["ids"][1 : LOG.num_items + 1]
        hidden = ~ids.any(axis=1)
        bias = grads["generate"]["bias"][1 : LOG.num_items + 1]
        np.testing.assert_array_equal(bias == 0, hidden)
        assert grads["items"]["ids"][0].any()
        assert grads["generate"]["bias"][0] != 0
        assert 0 < hidden.sum() < LOG.num_items
        left_out.append(hidden)
    assert (left_out[0] != left_out[1]).any() or (left_out[0] != left_out[2]).any()


def test_without_training_no_id_is_left_out():
    model, params = make()
    hiding = SpatiotemporalTransformer(dataclasses.replace(CONFIG, id_dropout=0.9), model.sizes)
    history, requests = batch()
    np.testing.assert_array_equal(
        predict(model, params, history, requests).queries,
        predict(hiding, params, history, requests).queries,
    )


def test_new_items_are_what_is_known_of_them_and_change_nothing_else():
    model, params = make(dataclasses.replace(CONFIG, use_sequel=False))
    old = LOG.num_items
    table = dict(category=["a", "a", "b"], traits={"genres": [["loud"], ["loud"], []]})
    log = add_items(LOG, ["n1", "n2", "n3"], **table)
    items = jax.tree.map(jnp.asarray, model_catalogue(log, model.config))
    history, requests = batch()
    before, after = (predict(model, params, history, requests, its) for its in (ITEMS, items))
    queries, places = before.queries.reshape(-1, 16), before.places.reshape(-1, 3)
    few, many = (p.scorer.logits(queries, places) for p in (before, after))
    np.testing.assert_allclose(few[:, : old + 1], many[:, : old + 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(many[:, old + 1], many[:, old + 2])
    assert (np.asarray(many[:, old + 1]) != np.asarray(many[:, old + 3])).all()
    assert (np.asarray(many[:, old + 1 : old + 4]) > -1e8).all()

    # In a history, too, a new item is an unknown one with its category and traits.
    new, unknown = (
        dataclasses.replace(history, items=jnp.where(history.items == 3, item, history.items))
        for item in (old + 1, 0)
    )
    np.testing.assert_array_equal(encode(model, params, new), encode(model, params, unknown))
    assert (np.asarray(encode(model, params, new)) != encode(model, params, history)).any()


def test_what_is_said_of_items_and_people_is_felt_unless_switched_off():
    history, requests = batch()
    no_traits = dataclasses.replace(history, traits={"genres": 0 * history.traits["genres"]})
    nobody = dataclasses.replace(requests, traits={"job": 0 * requests.traits["job"]})
    small = dict(use_sequel=False, use_crowd=False)
    for use_traits in (True, False):
        model, params = make(dataclasses.replace(CONFIG, use_traits=use_traits, **small))
        queries = predict(model, params, history, requests).queries
        for changed in ((no_traits, requests), (history, nobody)):
            felt = np.asarray(predict(model, params, *changed).queries != queries).any()
            assert felt == use_traits


def test_a_number_is_felt_and_of_an_unknown_one_only_that_it_is_unknown():
    model, params = make()
    history, _ = batch()
    states = encode(model, params, history)

    def states_with(values):
        return np.asarray(encode(model, params, history.replace(numbers=values)))

    prices = np.array(history.numbers["price"])
    unknown, filled = np.isnan(prices), np.asarray(history.segment_ids) > 0
    assert unknown.any()
    more = jnp.where(unknown, prices, prices + 0.5)
    assert (states_with({**history.numbers, "price": more}) != states)[filled & ~unknown].any()
    told = jnp.where(unknown, 0.0, prices)
    assert (states_with({**history.numbers, "price": told}) != states)[unknown].any()
    bits = prices.view(np.uint32)
    bits[unknown] = 0xFFC12345  # another NaN
    other = jnp.asarray(bits.view(np.float32))
    np.testing.assert_array_equal(states_with({**history.numbers, "price": other}), states)
    slopes = jax.grad(lambda params: encode(model, params, history).sum())(params)
    for name in ("number_price", "number_pieces"):
        assert np.isfinite(slopes["events"][name]).all()
        assert (slopes["events"][name] != 0).all()
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))
