import datetime
import types

import numpy as np

from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST
from stt_jax.evaluation import _groups
from tests.stt_jax.tiny_logs import random_log


def test_targets_are_grouped_by_their_local_hour():
    log = random_log(seed=2)
    targets = find_targets(log, TEST)
    zone = datetime.timezone(datetime.timedelta(hours=-4))  # of every event of a random log
    expected = [
        datetime.datetime.fromtimestamp(int(log.times[event]), zone).strftime("%H")
        for event in targets.events
    ]
    np.testing.assert_array_equal(_groups(log, targets)["hour_of_day"], expected)


def test_what_another_log_knows_is_told_by_ids():
    log = random_log(seed=2)
    targets = find_targets(log, TEST)
    # Numbered in another order, without the last item and the last two people of training.
    other = types.SimpleNamespace(
        user_ids=[*log.user_ids[: log.num_train_users - 2][::-1], *log.user_ids[-2:]],
        num_train_users=log.num_train_users - 2,
        item_ids=[log.item_ids[0], *log.item_ids[1:-1][::-1]],
    )
    expected = (targets.users < log.num_train_users - 2) & (log.items[targets.events] > 0)
    expected &= log.items[targets.events] < log.num_items
    assert 0 < expected.sum() < targets.known(log).sum()
    np.testing.assert_array_equal(targets.known_in(log, other), expected)


def test_targets_are_grouped_by_domain_where_there_are_any():
    log = random_log(seed=2, has_domains=True)
    targets = find_targets(log, TEST)
    expected = [
        "" if not item else ("shop", "news")[item % 2] for item in log.items[targets.events]
    ]
    np.testing.assert_array_equal(_groups(log, targets)["domain"], expected)


def test_a_log_without_times_has_no_hours():
    log = random_log(seed=2, has_times=False)
    assert "hour_of_day" not in _groups(log, find_targets(log, TEST))
