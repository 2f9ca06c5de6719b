import dataclasses

import grain
import jax
import numpy as np
import pytest

from stt_jax.data.pipeline import TrainingBatches, target_batches
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, TRAIN, UNKNOWN_E7
from tests.stt_jax.tiny_logs import random_log


def batches(log, **options):
    return TrainingBatches(
        log, **{"window": 16, "requests": 8, "batch_rows": 3, "seed": 0} | options
    )


def test_an_epoch_asks_for_every_training_event_once():
    log = random_log(num_users=9)
    source = batches(log, batch_rows=1)
    counts = np.zeros(log.num_items + 1, int)
    for step in range(source.rows_per_epoch):
        _, requests = source[step]
        counts += np.bincount(
            requests.targets[requests.segment_ids > 0], minlength=log.num_items + 1
        )
    np.testing.assert_array_equal(
        counts, np.bincount(log.items[log.parts == TRAIN], minlength=log.num_items + 1)
    )


def test_requests_see_exactly_the_events_before_theirs():
    log = random_log(num_users=9, seed=4)
    source = batches(log)
    for step in range(4):
        history, requests = source[step]
        for b, r in zip(*np.nonzero(requests.segment_ids), strict=True):
            user = int(requests.users[b, r]) - 1
            assert user >= 0
            # Item, gap and time of the visible tokens must be a stretch of that person's log.
            last = requests.last_tokens[b, r]
            same = history.segment_ids[b] == requests.segment_ids[b, r]
            visible = np.flatnonzero(same & (np.arange(16) <= last))
            span = slice(log.user_offsets[user], log.user_offsets[user + 1])
            absolute = log.times[span] - log.times[span][0]
            mine = log.items[span].tolist()
            seen = history.items[b, visible].tolist()
            places = [
                i
                for i in range(len(mine) - len(seen))
                if mine[i : i + len(seen)] == seen
                and mine[i + len(seen)] == requests.targets[b, r]
                and np.array_equal(
                    absolute[i : i + len(seen)] - absolute[i + len(seen)],
                    history.times[b, visible] - requests.times[b, r],
                )
            ]
            assert places, (step, b, r)


def test_numbers_lie_with_their_events_and_padding_is_zero():
    log = random_log(num_users=9, seed=4, has_numbers=True)
    # So that an event can be told by its category.
    log = dataclasses.replace(log, categories=np.arange(log.num_events, dtype=np.int32) + 1)
    history, _ = batches(log)[0]
    filled = history.segment_ids > 0
    events = history.categories[filled] - 1
    assert set(history.numbers) == {"price", "pieces"}
    for name, values in history.numbers.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[filled], log.numbers[name][events])
        assert np.isnan(values[filled]).any()
        assert not values[~filled].any()
    assert (~filled).any()


def test_places_are_metres_from_the_segment_origin_and_unknown_stays_unknown():
    log = random_log(seed=1)
    history, _ = batches(log)[0]
    filled = history.segment_ids > 0
    known = ~np.isnan(history.coords[..., 0])
    assert np.any(filled & ~known)
    absolute = (history.coords + history.origins)[known & filled]
    np.testing.assert_allclose(np.linalg.norm(absolute, axis=-1), 6_371_008.8, atol=2)


def test_targets_are_each_asked_once_with_their_own_context():
    log = random_log(num_users=12, seed=2)
    targets = find_targets(log, TEST, targets="session_last", context="strict")
    seen = []
    for history, requests, index in target_batches(
        log, targets, window=8, row_requests=3, batch_rows=2
    ):
        for b, r in zip(*np.nonzero(index >= 0), strict=True):
            t = index[b, r]
            seen.append(t)
            assert requests.targets[b, r] == log.items[targets.events[t]]
            tokens = history.segment_ids[b] == requests.segment_ids[b, r]
            np.testing.assert_array_equal(
                history.items[b, tokens], log.items[targets.context(t)][-8:]
            )
            before = history.items[b, : requests.last_tokens[b, r] + 1]
            assert len(before) == 0 or requests.last_tokens[b, r] == np.flatnonzero(tokens)[-1]
    assert sorted(seen) == list(range(len(targets)))


@pytest.mark.parametrize("window", [1, 2, 16, 64])
@pytest.mark.parametrize("kind", ["session_last", "every"])
def test_gaps_never_look_into_events_that_the_protocol_hides(kind, window):
    log = random_log(num_users=12, seed=2)
    targets = find_targets(log, TEST, targets=kind, context="strict")
    for history, requests, index in target_batches(
        log, targets, window=window, row_requests=3, batch_rows=2
    ):
        for b, r in zip(*np.nonzero(index >= 0), strict=True):
            times = log.times[targets.context(index[b, r])]
            tokens = history.segment_ids[b] == requests.segment_ids[b, r]
            gaps = history.gaps_s[b, tokens]
            # The first one's reaches back to the event before the window, if the context has it.
            known = np.concatenate([[-1] * (len(times) > 0), np.diff(times)])
            np.testing.assert_array_equal(gaps, known[len(known) - len(gaps) :])


def test_features_of_the_event_before_are_unknown_where_the_protocol_hides_it():
    log = random_log(num_users=12, seed=2)
    made = {"gap_h": np.arange(log.num_events, dtype=np.float32), "price": log.times / 1e9}
    made["step_km"] = made["gap_h"]
    log = dataclasses.replace(log, numbers={n: v.astype(np.float32) for n, v in made.items()})
    targets = find_targets(log, TEST, targets="session_last", context="strict")
    hidden = 0
    for history, requests, index in target_batches(
        log, targets, window=64, row_requests=3, batch_rows=2
    ):
        for b, r in zip(*np.nonzero(index >= 0), strict=True):
            target = index[b, r]
            events = targets.context(target)[-64:]
            tokens = history.segment_ids[b] == requests.segment_ids[b, r]
            found = {name: values[b, tokens] for name, values in history.numbers.items()}
            np.testing.assert_array_equal(found["price"], log.numbers["price"][events])
            first = log.user_offsets[targets.users[target]]
            after_hidden = np.diff(events, prepend=events[:1] - 1) > 1
            after_hidden[:1] |= (events[:1] == targets.session_starts[target]) & (
                targets.history_ends[target] == first) & (events[:1] > first)  # fmt: skip
            np.testing.assert_array_equal(np.isnan(found["gap_h"]), after_hidden)
            hidden += after_hidden.sum()
            # The way since the last known place: until there is one again.
            known = log.latitudes_e7[events] != UNKNOWN_E7
            for token in np.flatnonzero(after_hidden):
                unknown = token + np.arange(1 + np.argmax(np.append(known[token:], True)))
                assert np.isnan(found["step_km"][unknown[unknown < len(events)]]).all()
                assert not np.isnan(found["step_km"][unknown[-1] + 1 :]).any()
    assert hidden > 5


def test_a_saved_input_goes_on_with_the_same_batches():
    log = random_log(num_users=9)
    make = lambda: iter(  # noqa: E731
        grain.MapDataset.source(batches(log)).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        )
    )
    first = make()
    for _ in range(5):
        next(first)
    state = first.get_state()
    expected = next(first)
    second = make()
    second.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, next(second), expected)


def test_a_log_without_times_has_no_hours():
    _, requests = batches(random_log(has_times=False))[0]
    assert not requests.time_known.any()
    assert np.all(requests.phases == -1)
