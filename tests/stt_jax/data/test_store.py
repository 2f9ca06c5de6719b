import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from stt_jax.data.prepared_log import LogMeta, PreparedLog
from stt_jax.data.schema import EVENT_DTYPES, StepCount
from stt_jax.data.store import FORMAT_VERSION, UNKNOWN_E7, check_output, open_log, write_log


def make_log(directory):
    """Three users (the last without training events), two items, a context, sessions."""
    meta = LogMeta(
        format_version=FORMAT_VERSION,
        data_hash="",
        split_hash="ab12",
        has_times=True,
        has_places=True,
        time_format="unix seconds",
        local_time="UTC",
        steps=(StepCount("read", 6, 5, {"broken": 1}, {"café": 2}),),
        statistics={"num_events": 5},
        warnings=("mind the gap",),
        numerics={"price": [{"kind": "fill", "value": 3.0}]},
    )
    return PreparedLog(
        directory=directory,
        items=np.array([1, 2, 1, 0, 2], np.int32),
        times=np.array([10, 20, 5, 6, 2**40], np.int64),
        utc_offsets_s=np.full(5, -18_000, np.int32),
        latitudes_e7=np.array([1, 2, 3, UNKNOWN_E7, 5], np.int32),
        longitudes_e7=np.array([1, 2, 3, UNKNOWN_E7, 5], np.int32),
        categories=np.array([1, 0, 1, 0, 0], np.int32),
        contexts={"device": np.array([0, 1, 1, 1, 0], np.int32)},
        numbers={"price": np.array([0.5, np.nan, 3, 4, -1], np.float32)},
        was_missing={"price": np.array([0, 1, 1, 0, 0], np.int8)},
        sessions=np.array([1, 1, 0, 2, 3], np.int32),
        parts=np.array([0, 2, 0, 1, 2], np.int8),
        user_offsets=np.array([0, 2, 4, 5], np.int64),
        num_train_users=2,
        user_ids=["10", "9", "8"],
        item_ids=["", "x", "ü"],
        item_names=["", "Bar", "Zoo"],
        item_latitudes_e7=np.array([UNKNOWN_E7, 1, 2], np.int32),
        item_longitudes_e7=np.array([UNKNOWN_E7, 1, 2], np.int32),
        item_categories=np.array([0, 1, 0], np.int32),
        item_train_counts=np.array([0, 2, 0], np.int64),
        category_values=["", "bar"],
        context_values={"device": ["", "phone"]},
        item_traits={"genre": np.array([[0, 0], [2, 1], [1, 0]], np.int32)},
        item_trait_values={"genre": ["", "loud", "long"]},
        user_traits={"age": np.array([1, 0, 2], np.int32)},
        user_trait_values={"age": ["", "below 30", "30 and above"]},
        meta=meta,
    )


@pytest.fixture
def stored(tmp_path):
    write_log(make_log(tmp_path / "log"), "--input=x\n")
    return tmp_path / "log"


def test_what_is_written_is_what_is_read(stored):
    given, read = make_log(stored), open_log(stored)
    for field in dataclasses.fields(PreparedLog):
        before, after = getattr(given, field.name), getattr(read, field.name)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype
            assert after.tolist() == before.tolist()
        elif field.name in ("contexts", "item_traits", "user_traits"):
            assert {n: c.tolist() for n, c in after.items()} == {
                n: c.tolist() for n, c in before.items()
            }
        elif field.name in ("numbers", "was_missing"):
            np.testing.assert_array_equal(after["price"], before["price"], strict=True)
        elif field.name.endswith(("_ids", "_names")):
            assert list(after) == before
        elif field.name != "meta":
            assert after == before, field.name
    assert read.meta == dataclasses.replace(given.meta, data_hash=read.meta.data_hash)
    assert (read.num_events, read.num_users, read.num_items, read.num_categories) == (5, 3, 2, 1)


def test_columns_are_mapped_not_copied(stored):
    log = open_log(stored)
    for name, dtype in EVENT_DTYPES.items():
        values = getattr(log, name)
        assert values.dtype == dtype
        assert not values.flags.writeable
        assert not values.flags.owndata


def test_the_data_hash_sees_every_value_and_nothing_else(tmp_path):
    def hash_of(name, **changes):
        write_log(dataclasses.replace(make_log(tmp_path / name), **changes), "")
        return open_log(tmp_path / name).meta.data_hash

    first = hash_of("a")
    assert hash_of("b") == first
    assert hash_of("c", item_names=["", "Bar", "Zoo!"]) != first
    assert hash_of("d", items=np.array([1, 2, 1, 1, 2], np.int32)) != first


def test_reading_needs_no_table_engine(stored):
    code = (
        "import sys; from stt_jax.data.store import open_log; "
        f"open_log({str(stored)!r}); "
        "print([m for m in ('ibis', 'duckdb', 'pandas', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_log_that_is_open_survives_being_replaced(stored):
    log = open_log(stored)
    changed = dataclasses.replace(make_log(stored), items=np.zeros(5, np.int32))
    write_log(changed, "")
    assert log.items.tolist() == [1, 2, 1, 0, 2]
    assert open_log(stored).items.tolist() == [0] * 5


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a directory; make one with"):
        open_log(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no prepared log"):
        open_log(tmp_path)


def test_another_format_version_is_refused(stored):
    meta = json.loads((stored / "meta.json").read_text("utf-8"))
    (stored / "meta.json").write_text(json.dumps(meta | {"format_version": 99}), "utf-8")
    with pytest.raises(ValueError, match="format version 99, this program reads 1, 2, 3"):
        open_log(stored)


@pytest.mark.parametrize("name", ["events.arrow", "users.arrow", "items.arrow", "values.arrow"])
def test_damaged_files_are_refused(stored, name):
    path = stored / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is a damaged prepared log"):
        open_log(stored)
    path.unlink()
    with pytest.raises(ValueError, match="is a damaged prepared log"):
        open_log(stored)


def test_damaged_meta_is_refused(stored):
    (stored / "meta.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        open_log(stored)


def test_files_of_two_logs_do_not_pass_for_one(stored, tmp_path):
    short = make_log(tmp_path / "short")
    events = {name: getattr(short, name)[:4] for name in EVENT_DTYPES}
    offsets = np.array([0, 2, 3, 4], np.int64)
    contexts = {"device": short.contexts["device"][:4]}
    write_log(
        dataclasses.replace(
            short,
            **events,
            contexts=contexts,
            numbers={},
            was_missing={},
            user_offsets=offsets,
        ),
        "--x=\n",
    )
    (stored / "users.arrow").write_bytes((tmp_path / "short" / "users.arrow").read_bytes())
    with pytest.raises(ValueError, match=r"users\.arrow counts 4 events, events\.arrow has 5"):
        open_log(stored)


def test_a_failed_write_leaves_no_log(stored, monkeypatch):
    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_log(make_log(stored), "")
    with pytest.raises(ValueError, match="no prepared log"):
        open_log(stored)
    check_output(stored, overwrite=False)  # its own remains may be written over


def test_what_an_earlier_log_left_for_people_and_for_recbole_goes_with_it(stored):
    folder = stored / "recbole"
    folder.mkdir()
    for name in ("log.train.inter", "log.valid.inter", "log.test.inter", "log.item"):
        (folder / name).write_text("u3")
    (stored / "report.html").write_text("u3")
    (stored / "notes.txt").write_text("mine")
    write_log(make_log(stored), "")
    assert not folder.exists()
    assert not (stored / "report.html").exists()
    assert (stored / "notes.txt").read_text() == "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text("mine")
    write_log(make_log(stored), "")
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]


def test_a_log_of_version_1_is_read_as_one_without_numbers_and_traits(tmp_path):
    nothing = {name: {} for name in ("numbers", "was_missing", "item_traits", "user_traits")}
    nothing |= {"item_trait_values": {}, "user_trait_values": {}}
    log = dataclasses.replace(make_log(tmp_path / "log"), **nothing)
    write_log(log, "--input=x\n")
    meta = json.loads((tmp_path / "log" / "meta.json").read_text("utf-8"))
    del meta["numerics"], meta["former_hashes"], meta["forgotten_items"]
    (tmp_path / "log" / "meta.json").write_text(json.dumps(meta | {"format_version": 1}), "utf-8")
    read = open_log(tmp_path / "log")
    assert read.meta.numerics == {}
    assert read.meta.former_hashes == read.meta.forgotten_items == ()
    assert all(getattr(read, name) == {} for name in nothing)
    assert read.items.tolist() == log.items.tolist()
