import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.model.head import NUM_DISTANCES, ItemScorer
from stt_jax.model.stt import Prediction
from stt_jax.training.losses import mixture_loss

V, E, B, R = 7, 4, 2, 5


def prediction(pointer=True):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    scorer = ItemScorer(
        vectors=normal(V, E),
        bias=normal(V),
        categories=jnp.asarray(rng.integers(0, 3, V), jnp.int32),
        coords=1000 * normal(V, 3),
        distance_table=normal(3, NUM_DISTANCES),
    )
    log_mass = jnp.log(jnp.asarray(rng.random((B, R)), jnp.float32))
    gate = normal(B, R)
    return Prediction(
        normal(B, R, E),
        1000 * normal(B, R, 3),
        scorer,
        gate if pointer else None,
        log_mass if pointer else None,
    )


def test_loss_is_the_mixture_of_the_docstring():
    p = prediction()
    targets = jnp.asarray(np.random.default_rng(1).integers(0, V + 1, (B, R)), jnp.int32)
    loss, sums = mixture_loss(p, targets, label_smoothing=0.2)
    logits = p.scorer.logits(p.queries.reshape(-1, E), p.places.reshape(-1, 3))
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    gates = 1 / (1 + np.exp(-np.asarray(p.gate_logits, np.float64))).reshape(-1)
    mass = np.exp(np.asarray(p.target_log_mass, np.float64)).reshape(-1)
    terms = []
    for n, target in enumerate(np.asarray(targets).reshape(-1)):
        if target > 0:
            likely = gates[n] * np.exp(log_probs[n, target - 1]) + (1 - gates[n]) * mass[n]
            terms.append(-0.8 * np.log(likely) - 0.2 * log_probs[n].mean())
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    assert int(sums["requests"]) == len(terms)


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
    p = prediction(pointer=False)
    targets = jnp.ones((B, R), jnp.int32)
    logits = p.scorer.logits(p.queries.reshape(-1, E), p.places.reshape(-1, 3))
    loss, _ = mixture_loss(p, targets, label_smoothing=0.0)
    np.testing.assert_allclose(loss, -jax.nn.log_softmax(logits)[:, 0].mean(), rtol=1e-5)


def test_an_unknown_place_uses_the_last_distance():
    scorer = prediction().scorer
    unknown = scorer.logits(jnp.zeros((1, E)), jnp.full((1, 3), jnp.nan))
    expected = scorer.bias + scorer.distance_table[scorer.categories, -1]
    np.testing.assert_allclose(unknown[0], expected, rtol=1e-6)
