import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.data.encodings import earth_coords
from stt_jax.model.embedding import EventEmbedding, number_features, place_features


def at(latitude_deg, longitude_deg):
    e7 = np.round(np.array([latitude_deg, longitude_deg]) * 1e7).astype(np.int64)
    return jnp.asarray(earth_coords(e7[0], e7[1]), jnp.float32)


def test_place_features_of_near_places_are_alike_and_of_far_ones_are_not():
    here = place_features(at(40.75, -73.99))
    similarity = [
        float(here @ place_features(at(40.75 + d, -73.99))) for d in (0.0, 0.0001, 0.01, 1.0, 40.0)
    ]
    assert similarity == sorted(similarity, reverse=True)
    assert similarity[0] > 3 * abs(similarity[-1])


def test_an_unknown_place_has_no_features():
    features = place_features(jnp.array([[jnp.nan, jnp.nan, jnp.nan]]))
    np.testing.assert_array_equal(features, np.zeros_like(features))


def test_a_number_is_cut_at_a_limit_and_an_unknown_one_is_only_that():
    values = jnp.array([0.5, -1e30, jnp.inf, jnp.nan], jnp.float32)
    features = number_features(values)
    np.testing.assert_array_equal(features, [[0.5, 0], [-10, 0], [10, 0], [0, 1]])
    slopes = jax.grad(lambda x: number_features(x).sum())(values)
    np.testing.assert_array_equal(slopes, [1, 0, 0, 0])


def test_numbers_have_parameters_of_their_own_and_change_no_others():
    values = jnp.array([[0.5, jnp.nan]], jnp.float32)
    vectors, whole = jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), jnp.int32)
    drawn = {}
    for names in ((), ("pieces", "price")):
        module = EventEmbedding(4, (("device", 2),), names, True, False, "float32")
        numbers = dict.fromkeys(names, values)
        inputs = (vectors, vectors, {"device": whole}, numbers, whole, whole)
        drawn[names] = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    without, with_them = drawn.values()
    assert {name: leaf.shape for name, leaf in with_them.items() if name not in without} == {
        "number_pieces": (2, 4),
        "number_price": (2, 4),
    }
    same = np.testing.assert_array_equal
    jax.tree.map(same, without, {name: with_them[name] for name in without})
    changed = {**with_them, "number_price": with_them["number_price"] + jnp.array([[2.0], [3.0]])}
    apply = jax.jit(module.apply)
    before, after = (apply({"params": params}, *inputs) for params in (with_them, changed))
    np.testing.assert_allclose(after - before, [[[1.0] * 4, [3.0] * 4]], atol=1e-6)


def test_normed_events_have_unit_scale_however_small_the_vectors_of_their_items():
    module = EventEmbedding(16, (), (), False, True, "float32")
    vectors = jax.random.normal(jax.random.key(0), (1, 3, 16))
    unused = jnp.zeros((1, 3), jnp.int32)
    params = module.init(jax.random.key(1), vectors, vectors, {}, {}, unused, unused)
    found = [
        module.apply(params, scale * vectors, scale * vectors, {}, {}, unused, unused)
        for scale in (1.0, 0.1)
    ]
    np.testing.assert_allclose(found[0].std(axis=-1), 1.0, atol=1e-3)
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)
