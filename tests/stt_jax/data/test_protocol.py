import dataclasses

import numpy as np
import pytest

from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, TRAIN, VALIDATION
from tests.stt_jax.tiny_logs import random_log


def brute_force(log, part, kind, context):
    expected = []
    for user in range(log.num_users):
        events = range(log.user_offsets[user], log.user_offsets[user + 1])
        mine = [e for e in events if log.parts[e] == part]
        for e in mine:
            later = [x for x in mine if x > e]
            if kind == "last" and later:
                continue
            if kind == "session_last" and any(log.sessions[x] == log.sessions[e] for x in later):
                continue
            if context == "all":
                seen = [x for x in events if x < e]
            else:
                seen = [
                    x
                    for x in events
                    if x < e and (log.parts[x] < part or log.sessions[x] == log.sessions[e])
                ]
            expected.append((user, e, seen))
    return expected


@pytest.mark.parametrize("part", [VALIDATION, TEST])
@pytest.mark.parametrize("kind", ["every", "session_last", "last"])
@pytest.mark.parametrize("context", ["all", "strict"])
def test_targets_and_contexts_are_those_of_the_definition(part, kind, context):
    log = random_log(num_users=12, seed=3)
    targets = find_targets(log, part, targets=kind, context=context)
    expected = brute_force(log, part, kind, context)
    assert [int(e) for e in targets.events] == [e for _, e, _ in expected]
    assert [int(u) for u in targets.users] == [u for u, _, _ in expected]
    for t, (_, _, seen) in enumerate(expected):
        assert targets.context(t).tolist() == seen


def test_known_targets_have_a_trained_person_and_item():
    log = random_log()
    targets = find_targets(log, TEST)
    known = targets[targets.known(log)]
    assert 0 < len(known) < len(targets)
    assert np.all(known.users < log.num_train_users)
    assert np.all(log.items[known.events] > 0)


def test_sample_is_ordered_bounded_and_by_seed():
    targets = find_targets(random_log(), TRAIN)
    sample = targets.sample(7, seed=1)
    assert len(sample) == 7
    assert np.all(np.diff(sample.events) > 0)
    np.testing.assert_array_equal(sample.events, targets.sample(7, seed=1).events)
    assert len(targets.sample(0, seed=1)) == len(targets)


def test_strict_context_without_sessions_says_what_to_do():
    log = random_log()
    log = dataclasses.replace(log, sessions=np.zeros_like(log.sessions))
    with pytest.raises(ValueError, match="--session=COLUMN"):
        find_targets(log, TEST, context="strict")
    with pytest.raises(ValueError, match="targets must be one of"):
        find_targets(log, TEST, targets="some")
