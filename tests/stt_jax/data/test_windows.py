import numpy as np
import pytest

from stt_jax.data import windows as windows_module
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, TRAIN
from stt_jax.data.windows import target_windows, training_windows
from tests.stt_jax.tiny_logs import random_log


@pytest.mark.parametrize(("window", "requests"), [(1, 1), (8, 3), (16, 16), (64, 5)])
def test_every_training_event_is_asked_for_once(window, requests):
    log = random_log(num_users=20)
    windows = training_windows(log, window=window, requests=requests)
    asked = np.concatenate(
        [np.arange(a, b) for a, b in zip(windows.request_starts, windows.request_ends, strict=True)]
    )
    np.testing.assert_array_equal(np.sort(asked), np.flatnonzero(log.parts == TRAIN))


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_counting_a_stretch_at_a_time_changes_nothing(monkeypatch, at_once):
    log = random_log(num_users=20)
    whole = training_windows(log, window=8, requests=3)
    monkeypatch.setattr(windows_module, "_COUNTED_AT_ONCE", at_once)
    parts = training_windows(log, window=8, requests=3)
    np.testing.assert_array_equal(whole.request_starts, parts.request_starts)
    np.testing.assert_array_equal(whole.request_ends, parts.request_ends)


def test_training_windows_fit_and_stay_with_their_person():
    log = random_log(num_users=20)
    windows = training_windows(log, window=10, requests=4)
    assert windows.num_tokens.max() <= 10
    assert windows.num_requests.max() <= 4
    assert np.all(windows.starts >= log.user_offsets[windows.users])
    assert np.all(windows.request_ends <= log.user_offsets[windows.users + 1])
    # A request has the whole window before it, unless the person's past is shorter.
    past = windows.request_ends - 1 - log.user_offsets[windows.users]
    np.testing.assert_array_equal(windows.num_tokens, np.minimum(past, 10))


@pytest.mark.parametrize("context", ["all", "strict"])
def test_target_windows_hold_the_end_of_the_context(context):
    log = random_log(num_users=20)
    targets = find_targets(log, TEST, targets="session_last", context=context)
    windows = target_windows(targets, window=7)
    for t in range(len(targets)):
        tokens = np.concatenate(
            [
                np.arange(windows.history_starts[t], windows.history_ends[t]),
                np.arange(windows.starts[t], windows.ends[t]),
            ]
        )
        np.testing.assert_array_equal(tokens, targets.context(t)[-7:])
