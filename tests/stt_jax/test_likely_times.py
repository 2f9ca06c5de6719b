"""How long people wait for their next event, by the hour of the last one."""

import dataclasses

import numpy as np

from stt_jax.data.store import TRAIN
from stt_jax.likely_times import find_waits
from tests.stt_jax.tiny_logs import FIRST_MONDAY, random_log

HOUR_S = 3600


def log_of(waits_by_hour, *, first_s=FIRST_MONDAY, parts=TRAIN):
    """One person an hour and wait: an event at that hour of the week, and one after the wait."""
    pairs = [(hour, wait) for hour, waits in waits_by_hour.items() for wait in waits]
    times = np.array(
        [(first_s + hour * HOUR_S, first_s + hour * HOUR_S + wait) for hour, wait in pairs]
    ).ravel()
    log = random_log()
    return dataclasses.replace(
        log,
        times=times,
        parts=np.broadcast_to(np.int8(parts), times.shape),
        utc_offsets_s=np.zeros(len(times), np.int32),
        items=np.ones(len(times), np.int32),
        user_offsets=np.arange(0, len(times) + 1, 2),
    )


def test_waits_are_quantiles_of_those_after_an_hour_of_weekdays_or_of_the_weekend():
    morning, evening, sunday = np.arange(100) * 60, 7200 + np.arange(40), np.arange(50) * 3
    tuesday = {9: morning[:50], 24 + 9: morning[50:], 18: evening, 6 * 24 + 9: sunday}
    waits = find_waits(log_of(tuesday), 4)
    assert waits.dtype == np.int32
    middles = [0.125, 0.375, 0.625, 0.875]
    for hour, counted in ((9, morning), (4 * 24 + 9, morning), (18, evening)):
        np.testing.assert_array_equal(waits[hour], np.quantile(counted, middles).astype(int))
    for hour in (5 * 24 + 9, 6 * 24 + 9):
        np.testing.assert_array_equal(waits[hour], np.quantile(sunday, middles).astype(int))
    everything = np.concatenate([morning, evening, sunday])
    for hour in (10, 5 * 24 + 18):  # nobody was seen then
        np.testing.assert_array_equal(waits[hour], np.quantile(everything, middles).astype(int))


def test_an_hour_with_few_waits_has_those_of_all():
    for count, own in ((19, False), (20, True)):
        waits = find_waits(log_of({9: [60] * count, 18: [7200] * 1000}), 3)
        assert waits[9].tolist() == [60 if own else 7200] * 3


def test_the_hour_is_the_local_one():
    log = log_of({9: [60] * 30, 18: [7200] * 30})
    east = dataclasses.replace(log, utc_offsets_s=np.full(len(log.times), 2 * HOUR_S, np.int32))
    assert find_waits(east, 1)[11].tolist() == [60]


def test_nothing_but_neighbours_of_one_person_in_the_training_part_is_counted():
    log = log_of({9: [60] * 30, 18: [7200] * 30})
    parts = np.array(log.parts)
    parts[1::2][:30] = 1  # the second event of the morning's people is not trained on
    found = find_waits(dataclasses.replace(log, parts=parts), 2)
    assert set(found.ravel().tolist()) == {7200}
    # Two training events with one of another part between them are no neighbours.
    between = dataclasses.replace(
        log_of({9: [60] * 2}), user_offsets=np.array([0, 4]), parts=np.array([0, 1, 1, 0], np.int8)
    )
    assert not find_waits(between, 2).any()


def test_a_log_without_two_events_of_anybody_and_waits_beyond_int32():
    alone = log_of({9: [60]}, parts=2)
    assert find_waits(alone, 3).tolist() == [[0, 0, 0]] * 168
    assert find_waits(log_of({9: [2**40]}), 1).max() == 2**31 - 1
