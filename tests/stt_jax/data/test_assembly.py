import time

import numpy as np
import pyarrow as pa
import pytest

from stt_jax.data.assembly import (
    _at_once,
    _whole_users,
    number_sessions,
    sessions_by_gap,
    split_lines,
)
from stt_jax.data.columnfiles import ColumnFiles


def test_sessions_are_numbered_by_their_first_event():
    users = np.array([4, 4, 4, 5, 5, 7])
    sessions = pa.chunked_array([["s2", "s1", "s2"], ["s1", None, "s2"]])
    assert number_sessions(users, sessions, 10).tolist() == [11, 12, 11, 13, 0, 14]
    assert (
        number_sessions(users, pa.chunked_array([pa.nulls(6, pa.string())]), 3).tolist() == [0] * 6
    )


def test_a_pause_begins_a_session():
    users = np.array([3, 3, 3, 3, 4, 4, 7])
    times = np.array([0, 3600, 7201, 7201, 7201, 10_801, 0])
    found = sessions_by_gap(users, times, 1.0, 10)
    assert found.tolist() == [11, 11, 12, 12, 13, 13, 14]
    assert found.dtype == np.int32


def test_the_line_of_an_event_is_what_the_docstring_says():
    events = pa.table(
        {
            "user_row": pa.array([1, 0], pa.int32()),
            "items": pa.array([2, 1], pa.int32()),
            "times": pa.array([-5, 1_600_000_000], pa.int64()),
            "parts": pa.array([0, 2], pa.int8()),
        }
    )
    lines = split_lines(events, pa.array(["a", "b c"]), pa.array(["j", "i\u00e9"])).to_pylist()
    assert lines == ["b c\ti\u00e9\t-5\ttrain\n", "a\tj\t1600000000\ttest\n"]


def test_what_is_done_on_two_threads_comes_in_order():
    def slowest_first(value):
        time.sleep(0.02 * (value == 0))
        return -value

    assert list(_at_once(slowest_first, range(7))) == [-value for value in range(7)]
    with pytest.raises(ZeroDivisionError):
        list(_at_once(lambda value: 1 // value, range(3)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_users_stay_whole_however_the_rows_come(size):
    users = np.repeat([0, 1, 2, 3, 4], [3, 1, 7, 1, 2])
    rows = pa.table({"user_row": users, "n": np.arange(len(users))})
    batches = [rows.slice(start, size) for start in range(0, len(users), size)]
    tables = list(_whole_users([rows.slice(0, 0), *batches]))
    assert pa.concat_tables(tables).equals(rows)
    seen = [set(table["user_row"].to_pylist()) for table in tables]
    assert sum(map(len, seen)) == 5


def test_columns_grow_on_disk(tmp_path):
    files = ColumnFiles(tmp_path, {"a": np.int8, "b": np.float32})
    files.append({"a": np.arange(3), "b": np.full(3, np.nan), "c": np.arange(3)})
    files.append({"a": np.arange(2), "b": np.zeros(2)})
    columns = files.map()
    assert columns["a"].tolist() == [0, 1, 2, 0, 1]
    assert columns["a"].dtype == np.int8
    np.testing.assert_array_equal(columns["b"], np.float32([np.nan] * 3 + [0] * 2))
    assert not columns["b"].flags.writeable
