"""Ranks of one model and of several together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.protocol import MODES
from stt_jax.training.ranks import asked_batches, in_mode, make_ranker, model_ranks
from stt_jax.training.setup import set_up
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=12, seed=6)
MODEL = ModelConfig(width=8, num_heads=2, num_layers=1, attention="reference")
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=4)


@pytest.fixture(scope="module")
def setup():
    return set_up(LOG, TRAINING, MODEL, ProtocolConfig(), DeviceConfig())


@pytest.fixture(scope="module")
def members(setup):
    def moved(seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(0, 0.3, shape.shape), jnp.float32),
            setup.shapes.params,
        )

    return [moved(seed) for seed in range(3)]


def ranks_of(setup, params, others=()):
    return model_ranks(
        make_ranker(setup.model),
        params,
        setup.items,
        LOG,
        setup.targets,
        window=TRAINING.window,
        others=others,
    )


def expected_ranks(setup, members, mode):
    """From the mean of the members' probabilities, in float64, target by target."""
    expected = np.zeros(len(setup.targets), np.int64)
    batches = asked_batches(
        LOG, setup.targets, window=TRAINING.window, leave_out_seen=False, name_domains=False,
        placement=None,
    )  # fmt: skip
    for history, requests, _, index in batches:
        means = np.mean(
            [
                np.asarray(
                    setup.model.apply(
                        {"params": params}, setup.items, history, in_mode(requests, mode),
                        setup.model.apply(
                            {"params": params}, history, deterministic=True,
                            method=setup.model.encode,
                        ),
                        method=setup.model.item_probabilities,
                    ),
                    np.float64,
                )
                for params in members
            ],
            axis=0,
        )  # fmt: skip
        for row, place in zip(*np.nonzero(index >= 0), strict=True):
            scores = means[row, place][np.asarray(setup.items.is_item)]
            own = means[row, place, requests.targets[row, place]]
            expected[index[row, place]] = np.sum(scores >= own - 1e-7)
    return expected


def test_several_models_rank_by_the_mean_of_their_probabilities(setup, members):
    known = LOG.items[setup.targets.events] > 0
    assert known.sum() > 5
    found = ranks_of(setup, members[0], members[1:])
    alone = [ranks_of(setup, params) for params in members]
    for mode in MODES:
        expected = expected_ranks(setup, members, mode)
        np.testing.assert_array_equal(found[mode][known], expected[known])
        for one in alone:
            assert (found[mode][known] != one[mode][known]).any()


def test_a_model_together_with_itself_ranks_as_alone(setup, members):
    alone = ranks_of(setup, members[0])
    jax.tree.map(np.testing.assert_array_equal, ranks_of(setup, members[0], [members[0]]), alone)
