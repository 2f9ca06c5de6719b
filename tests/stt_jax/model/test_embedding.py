import jax.numpy as jnp
import numpy as np

from stt_jax.data.pipeline import earth_coords
from stt_jax.model.embedding import place_features


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
