import numpy as np
import pyarrow as pa
import pytest

from stt_jax.data.assembly import _whole_users, number_sessions
from stt_jax.data.columnfiles import ColumnFiles


def test_sessions_are_numbered_by_their_first_event():
    users = np.array([4, 4, 4, 5, 5, 7])
    sessions = pa.chunked_array([["s2", "s1", "s2"], ["s1", None, "s2"]])
    assert number_sessions(users, sessions, 10).tolist() == [11, 12, 11, 13, 0, 14]
    assert (
        number_sessions(users, pa.chunked_array([pa.nulls(6, pa.string())]), 3).tolist() == [0] * 6
    )


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
