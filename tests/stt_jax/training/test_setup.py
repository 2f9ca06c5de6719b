import numpy as np
import pytest

from stt_jax.config import TrainingConfig
from stt_jax.training.setup import target_weights
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
