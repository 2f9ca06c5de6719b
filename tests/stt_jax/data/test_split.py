import tempfile

import ibis
import pyarrow as pa
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data import split
from stt_jax.data.engine import DuckEngine
from stt_jax.data.schema import TEST, TRAIN, VALIDATION

DAY_S = 86_400


def make_log(times_s, users=None):
    return ibis.memtable(
        pa.table(
            {
                "source_row": list(range(len(times_s))),
                "user": users or ["a"] * len(times_s),
                "time_s": pa.array(times_s, pa.int64()),
                "time_us": [0] * len(times_s),
                "part": pa.array([TRAIN] * len(times_s), pa.int8()),
            }
        )
    )


def cuts(table, **options):
    config = PrepareConfig(input=("x",), output="y", time="t", **options)
    with tempfile.TemporaryDirectory() as folder:
        engine = DuckEngine(folder, threads=1)
        try:
            log = engine.connection.create_table("log", table)
            return split.find_cuts(log, config, engine)
        finally:
            engine.close()


def parts_by_time(table, **options):
    marked = split.by_time(table, cuts(table, **options))
    return marked.order_by("source_row").to_pyarrow()["part"].to_pylist()


def test_fractions_cut_at_quantiles_of_the_times():
    parts = parts_by_time(make_log(list(range(100))))
    assert parts == [TRAIN] * 80 + [VALIDATION] * 10 + [TEST] * 10


def test_events_of_the_second_of_the_cut_are_all_later():
    parts = parts_by_time(make_log([1, 2, 3, 4, 5, 6, 7, 7, 7, 7]), test_fraction=0.2)
    assert parts == [TRAIN] * 6 + [TEST] * 4


@pytest.mark.parametrize(("fraction", "sizes"), [(0.2, (6, 2)), (0.01, (8, 0)), (0.85, (0, 8))])
def test_a_fraction_of_the_log_validates_right_before_the_test(fraction, sizes):
    log = make_log([3600 * hour for hour in range(10)])
    parts = parts_by_time(log, test_from="1970-01-01T07:30:00", validation_fraction=fraction)
    assert parts == [TRAIN] * sizes[0] + [VALIDATION] * sizes[1] + [TEST] * 2


def test_a_fraction_of_zero_leaves_its_part_empty():
    table = make_log(list(range(10)))
    assert set(parts_by_time(table, validation_fraction=0.0)) == {TRAIN, TEST}
    assert set(parts_by_time(table, test_fraction=0.0)) == {TRAIN, VALIDATION}


def test_days_count_from_the_last_event():
    table = make_log([day * DAY_S for day in range(100)])
    parts = parts_by_time(table, test_days=10, validation_days=5)
    assert parts == [TRAIN] * 85 + [VALIDATION] * 5 + [TEST] * 10


def test_moments_and_fractions_mix():
    table = make_log([day * DAY_S for day in range(100)])
    found = cuts(table, test_from="1970-03-02", validation_fraction=0.2)
    assert found == split.Cuts(40 * DAY_S, 60 * DAY_S)
    found = cuts(table, test_from="1970-03-02", validation_from="1970-02-20T12:00:00Z")
    assert found == split.Cuts(50 * DAY_S + DAY_S // 2, 60 * DAY_S)


def test_a_validation_after_the_test_is_refused():
    table = make_log([day * DAY_S for day in range(100)])
    with pytest.raises(ValueError, match="after the test part"):
        cuts(table, test_from="1970-03-02", validation_from="1970-03-03")
    with pytest.raises(ValueError, match="no events are left before the test part"):
        cuts(table, test_from="1969-01-01")


def test_leave_one_out_takes_the_last_two_of_each_user():
    table = make_log([5, 5, 1, 9, 9, 9, 2, 3], ["a", "a", "a", "b", "b", "b", "c", "c"])
    parts = split.leave_one_out(table).order_by("source_row").to_pyarrow()["part"]
    # Ties go by source row; a user with two events trains on both.
    assert parts.to_pylist() == [
        VALIDATION,
        TEST,
        TRAIN,
        TRAIN,
        VALIDATION,
        TEST,
        TRAIN,
        TRAIN,
    ]


def test_a_share_of_the_users_validates_and_the_others_train_on_that_event():
    users = [name for name in "fbdaec" for _ in range(3)] + ["aa", "aa"]
    table = make_log([1, 2, 3] * 6 + [1, 2], users)
    whole = split.leave_one_out(table).order_by("source_row").to_pyarrow()["part"].to_pylist()
    third = split.leave_one_out(table, 1 / 3).order_by("source_row")
    assert third.columns == table.columns
    parts = third.to_pyarrow()["part"].to_pylist()
    validating = {user for user, part in zip(users, parts, strict=True) if part == VALIDATION}
    # Of a to f in the order of their ids every third; aa is too short to be drawn.
    assert validating == {"c", "f"}
    expected = [
        part if user in validating or part != VALIDATION else TRAIN
        for user, part in zip(users, whole, strict=True)
    ]
    assert parts == expected
    none = split.leave_one_out(table, 0.0).to_pyarrow()["part"].to_pylist()
    assert none.count(VALIDATION) == 0
    assert none.count(TEST) == 6
