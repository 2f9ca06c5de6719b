"""A prepared log in memory: who is in which row, and how it is walked through."""

import dataclasses

import numpy as np
import pytest

from stt_jax.data import prepared_log
from tests.stt_jax.tiny_logs import random_log


def a_log():
    """Three users with 2, 2 and 1 events, the last without training events; two items."""
    return dataclasses.replace(
        random_log(num_users=3),
        items=np.array([1, 2, 1, 0, 2], np.int32),
        user_offsets=np.array([0, 2, 4, 5], np.int64),
        num_train_users=2,
        user_ids=["10", "9", "8"],
        item_ids=["", "x", "ü"],
    )


def test_stretches_hold_whole_users(monkeypatch):
    log = a_log()
    monkeypatch.setattr(prepared_log, "_STRETCH_EVENTS", 3)
    found = [(users.start, users.stop, e.start, e.stop) for users, e in log.stretches()]
    assert found == [(0, 2, 0, 4), (2, 3, 4, 5)]
    monkeypatch.setattr(prepared_log, "_STRETCH_EVENTS", 1)
    assert [(e.start, e.stop) for _, e in log.stretches()] == [(0, 2), (2, 4), (4, 5)]


def test_ids_are_found_in_both_blocks_of_users():
    log = a_log()
    assert [log.user_row(user) for user in ("10", "9", "8")] == [0, 1, 2]
    assert [log.item_row(item) for item in ("x", "ü")] == [1, 2]
    with pytest.raises(ValueError, match=r"user '99' is not in .*; near ids: 9"):
        log.user_row("99")
    with pytest.raises(ValueError, match="item '' is not among the training items"):
        log.item_row("")
