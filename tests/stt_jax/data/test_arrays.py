import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from stt_jax.data.arrays import texts_to_arrow, to_arrow, to_numpy


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.float32, np.float64])
def test_numbers_go_there_and_back(dtype):
    values = np.array([-1, 0, 7], dtype)
    array = to_arrow(values)
    assert array.equals(pa.array(values))
    assert to_numpy(array).dtype == dtype
    np.testing.assert_array_equal(to_numpy(array.slice(1)), values[1:])
    pieces = pa.chunked_array([array, array.slice(2)])
    np.testing.assert_array_equal(to_numpy(pieces, np.float64), [-1, 0, 7, 7])
    assert len(to_numpy(pa.chunked_array([], array.type))) == 0


def test_null_is_nan_and_no_integer():
    np.testing.assert_array_equal(to_numpy(pa.array([1.5, None])), [1.5, np.nan])
    with pytest.raises(ValueError, match="1 of 2 numbers are null"):
        to_numpy(pa.array([1, None]))


@pytest.mark.parametrize("texts", [[], ["a", "", "é", "☃" * 9]])
def test_texts_are_arrow_strings(texts):
    assert texts_to_arrow(texts).equals(pa.array(texts, pa.string()))


def test_preparing_a_plain_log_loads_neither_pandas_nor_jax(tmp_path):
    rows = "".join(f"{k % 5},{k % 7},{1_600_000_000 + k},48.{k},11.5\n" for k in range(60))
    (tmp_path / "log.csv").write_text("u,i,t,lat,lon\n" + rows)
    code = f"""
import sys
from stt_jax import prepare
prepare.main(["", "--input={tmp_path}/log.csv", "--output={tmp_path}/out", "--user=u", "--item=i",
              "--time=t", "--latitude=lat", "--longitude=lon"])
print([name for name in ("pandas", "jax", "flax", "pyarrow.dataset") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
