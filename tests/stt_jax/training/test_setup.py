import math

import jax
import numpy as np
import pytest

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.store import TRAIN
from stt_jax.successions import find_successions
from stt_jax.training.setup import set_up, target_weights
from stt_jax.trends import LiveTrends
from tests.stt_jax.tiny_logs import random_log


def test_balanced_domains_count_the_same_in_the_loss():
    log = random_log(num_users=30, num_items=9, has_domains=True)
    assert target_weights(log, TrainingConfig()) is None
    assert target_weights(random_log(), TrainingConfig(balance_domains=1.0)) is None
    weights = target_weights(log, TrainingConfig(balance_domains=1.0))
    counted = weights[: log.num_items + 1] * log.item_train_counts
    shares = np.bincount(log.item_domains, counted)[1:]
    assert shares[0] == pytest.approx(shares[1], rel=1e-5)
    assert counted[1:].sum() == pytest.approx(log.item_train_counts[1:].sum(), rel=1e-5)


def test_live_trends_are_what_validations_see_and_training_never_does():
    log = random_log(num_users=20, seed=6)
    model = ModelConfig(
        width=8,
        num_heads=2,
        num_layers=1,
        trend_half_lives_h=(3.0, 24.0),
        trend_step_min=30,
        succession_half_lives_h=(2.0,),
    )
    training = TrainingConfig(window=16, requests=8, batch_rows=8)
    frozen, live = (
        set_up(log, training, model, ProtocolConfig(trends=trends), DeviceConfig())
        for trends in ("training", "live")
    )
    assert frozen.asked_items is frozen.items
    jax.tree.map(np.testing.assert_array_equal, live.items, frozen.items)
    expected = LiveTrends(log, (3.0, 24.0), 30).trends()
    jax.tree.map(np.testing.assert_array_equal, live.asked_items.trends, expected)
    train, every = np.flatnonzero(log.parts == TRAIN), np.arange(log.num_events)
    for items, events in ((live.items, train), (live.asked_items, every)):
        expected = find_successions(log, events)
        jax.tree.map(np.testing.assert_array_equal, items.successions, expected)
    assert live.asked_items.relations is live.items.relations


@pytest.mark.parametrize("half_lives", [(24.0, 0.0), (0,), (-1.0,), (math.inf,), (math.nan,)])
@pytest.mark.parametrize("name", ["trend_half_lives_h", "succession_half_lives_h"])
def test_half_lives_are_positive_numbers(name, half_lives):
    with pytest.raises(ValueError, match=rf"--{name}=.* must be positive numbers"):
        ModelConfig(**{name: half_lives})


@pytest.mark.parametrize("half_lives", [("24",), 24.0, [24.0]])
def test_half_lives_come_as_a_tuple_of_numbers(half_lives):
    with pytest.raises(ValueError, match=r"trend_half_lives_h=.* must be a tuple of numbers"):
        ModelConfig(trend_half_lives_h=half_lives)


@pytest.mark.parametrize("minutes", [0, -5, 7, 120])
def test_steps_of_trends_divide_the_hour(minutes):
    with pytest.raises(ValueError, match=rf"--trend_step_min={minutes} must divide 60"):
        ModelConfig(trend_step_min=minutes)


@pytest.mark.parametrize("name", ["epochs", "validation_every"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_training_has_an_end(name, value):
    with pytest.raises(ValueError, match=f"--{name}={value} must be a finite number"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_gradient_is_neither_cut_to_nothing_nor_turned_round(value):
    with pytest.raises(ValueError, match=f"--clip_norm={value} must be positive"):
        TrainingConfig(clip_norm=value)
