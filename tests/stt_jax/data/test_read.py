import pathlib

import pyarrow as pa
import pyarrow.parquet
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data.engine import DuckEngine
from stt_jax.data.files import BrokenRows, LogFile
from stt_jax.data.read import RawLog, read_log


@pytest.fixture
def engine(tmp_path):
    return DuckEngine(str(tmp_path / "spill"), threads=1)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def config(tmp_path, *inputs, **options):
    options = {"user": "u", "item": "i", "time": "t"} | options
    return PrepareConfig(
        input=inputs, data_root=str(tmp_path), output=str(tmp_path / "out"), **options
    )


def rows_of(raw):
    """The raw rows by the names of the files' columns."""
    table = raw.table.order_by("source_row").to_pyarrow()
    columns = {name: table[alias].to_pylist() for name, alias in raw.columns.items()}
    return columns | {"part": table["part"].to_pylist()}


def test_rows_are_numbered_over_all_files_in_order(tmp_path, engine):
    write(tmp_path / "a.csv", "u,i,t\n1,x,5\n2,y,6\n")
    write(tmp_path / "b.csv", "t,u,other,i\n7,3,?,z\n")
    write(tmp_path / "v.csv", "u,i,t\n4,x,8\n")
    write(tmp_path / "e.csv", "u,i,t\n5,x,9\n")
    given = config(
        tmp_path,
        "b.csv",
        "a.csv",
        validation_input=("v.csv",),
        test_input=("e.csv",),
        split="given",
    )
    raw = read_log(given, engine)
    assert rows_of(raw) == {
        "u": ["3", "1", "2", "4", "5"],
        "i": ["z", "x", "y", "x", "x"],
        "t": ["7", "5", "6", "8", "9"],
        "part": [0, 0, 0, 1, 2],
    }
    assert raw.where(2) == f"{tmp_path / 'a.csv'} row 2"
    assert raw.where(4) == f"{tmp_path / 'e.csv'} row 1"
    assert [count.rows_out for count in raw.counts] == [1, 2, 1, 1]


def test_names_that_differ_in_case_only_are_two_columns(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t,T\n1,x,5,late\n")
    raw = read_log(config(tmp_path, path, category="T"), engine)
    assert rows_of(raw)["T"] == ["late"]
    assert rows_of(raw)["t"] == ["5"]


def test_one_column_can_have_several_uses(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t\n1,x,5\n")
    raw = read_log(config(tmp_path, path, name="i", drop_if=("i=y",)), engine)
    assert set(raw.columns) == {"u", "i", "t"}


def test_items_table_is_joined_by_id(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t,kind\n1,x,5,log\n2,y,6,log\n3,x,7,log\n")
    write(tmp_path / "items.csv", "id,label,kind\nx,first,table\nx,second,table\nz,other,table\n")
    raw = read_log(
        config(tmp_path, path, items="items.csv", items_key="id", name="label", category="kind"),
        engine,
    )
    rows = rows_of(raw)
    assert rows["label"] == ["first", None, "first"]
    # A column that both tables have is the log's.
    assert rows["kind"] == ["log"] * 3
    assert raw.counts[-1].changed == {
        "item without a row there": 1,
        "rows of an item that has one already": 1,
    }
    assert raw.num_rows == 3


def test_what_is_wrong_with_a_joined_table_is_counted(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t\nx,1,5\ny,2,6\n")
    text = 'u,age\nx,7\n,8\n,9\ny\ny,1\nx,7\nx,"3\nz,4"\n'
    write(tmp_path / "users.csv", text)
    raw = read_log(config(tmp_path, path, users="users.csv", user_traits=("age",)), engine)
    assert rows_of(raw)["age"] == ["7", "1"]
    assert raw.counts[-1].changed == {
        "rows of a user that has one already": 2,
        "rows without a user": 2,
        "rows that cannot be split into their columns": 1,
        "lines inside quoted fields": 1,
    }


def test_items_of_one_id_in_two_domains_have_rows_of_their_own(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,d,i,t\n1,shop,x,5\n2,news,x,6\n3,shop,y,7\n3,,x,8\n")
    text = "i,label,d\nx,report,news\nx,shoe,shop\ny,essay,news\nx,boot,shop\n"
    write(tmp_path / "items.csv", text)
    raw = read_log(config(tmp_path, path, domain="d", items="items.csv", name="label"), engine)
    rows = rows_of(raw)
    assert rows["label"] == ["shoe", "report", None, None]
    assert rows["d"] == ["shop", "news", "shop", ""]
    assert raw.counts[-1].changed == {
        "item without a row there": 2,
        "rows of an item that has one already": 1,
    }


def test_the_domain_may_come_from_the_items_table(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t\n1,x,5\n2,y,6\n")
    write(tmp_path / "items.csv", "i,d\nx,news\ny,shop\n")
    raw = read_log(config(tmp_path, path, domain="d", items="items.csv"), engine)
    assert rows_of(raw)["d"] == ["news", "shop"]


def test_items_table_without_header(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t\n1,x,5\n")
    write(tmp_path / "places.txt", "x\t1.5\t2.5\n")
    raw = read_log(
        config(
            tmp_path,
            path,
            items="places.txt",
            items_columns=("i", "lat", "lon"),
            latitude="lat",
            longitude="lon",
        ),
        engine,
    )
    assert (rows_of(raw)["lat"], rows_of(raw)["lon"]) == (["1.5"], ["2.5"])


def test_items_table_with_other_ids_is_refused(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t\n1,x,5\n")
    write(tmp_path / "items.csv", "id,label\n1,first\n")
    options = {"items": "items.csv", "name": "label"}
    with pytest.raises(ValueError, match="--items_key is missing"):
        read_log(config(tmp_path, path, **options), engine)
    with pytest.raises(ValueError, match="1 of 1 events have an item that its column 'id' lacks"):
        read_log(config(tmp_path, path, items_key="id", **options), engine)


@pytest.mark.parametrize("text", ["id,label\n", "id,label"])
def test_items_table_without_rows_is_refused(tmp_path, engine, text):
    path = write(tmp_path / "a.csv", "u,i,t\n1,x,5\n")
    write(tmp_path / "items.csv", text)
    with pytest.raises(ValueError, match=r"items\.csv has no rows"):
        read_log(config(tmp_path, path, items="items.csv", items_key="id", name="label"), engine)


def test_a_missing_column_is_named_with_its_file_and_flag(tmp_path, engine):
    a = write(tmp_path / "a.csv", "u,i,t\n1,x,5\n")
    b = write(tmp_path / "b.csv", "u,i,time\n1,x,5\n")
    with pytest.raises(ValueError, match=r"--time=t: .*b\.csv has no such column.* Columns: u, i"):
        read_log(config(tmp_path, a, b), engine)
    with pytest.raises(ValueError, match="--context=device"):
        read_log(config(tmp_path, a, context=("device",)), engine)
    with pytest.raises(ValueError, match="--drop_missing=price"):
        read_log(config(tmp_path, a, drop_missing=("price",)), engine)


def test_a_column_that_occurs_twice_is_refused(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t,t\n1,x,5,6\n")
    with pytest.raises(ValueError, match=r"--time=t: .* has 2 columns of that name"):
        read_log(config(tmp_path, path), engine)


def test_a_file_of_another_form_is_refused(tmp_path, engine):
    path = write(tmp_path / "a.csv", "u,i,t\n" + "1;x;5\n" * 9 + "1,x,5\n")
    with pytest.raises(ValueError, match="9 of 10 rows cannot be read as delimited by comma"):
        read_log(config(tmp_path, path), engine)


def test_rows_that_a_stray_quote_has_swallowed_are_counted_and_may_be_refused(tmp_path, engine):
    rows = [f"{row},x,{row},title {row}" for row in range(12)]
    rows[5], rows[9] = rows[5].replace("title", '"title'), rows[9].replace("title 9", '"title" 9')
    write(tmp_path / "log.csv", "u,i,t,n\n" + "\n".join(rows) + "\n")
    raw = read_log(config(tmp_path, "log.csv"), engine)
    assert raw.num_rows == 8
    assert raw.counts[0].changed == {"lines inside quoted fields": 4}
    for option, words in (({"strict": True}, "--strict"), ({"max_broken_fraction": 0.3}, "_frac")):
        with pytest.raises(ValueError, match=f"log.csv: 4 of 12 lines .* stray quote.*{words}"):
            read_log(config(tmp_path, "log.csv", **option), DuckEngine(str(tmp_path / "more")))


def test_many_batches_keep_their_rows_in_order(tmp_path, engine):
    path = tmp_path / "log.parquet"
    values = [str(i) for i in range(300_000)]
    pa.parquet.write_table(pa.table({"u": values, "i": values, "t": values}), path)
    raw = read_log(config(tmp_path, str(path)), engine)
    assert rows_of(raw)["u"] == values


def test_a_row_is_shown_with_a_text_of_its_file():
    def file(path, *batches):
        return LogFile(
            pathlib.Path(path),
            "made up",
            ("u", "t"),
            lambda wanted: (pa.table({"1": batch}) for batch in batches if wanted == [1]),
            BrokenRows(),
        )

    files = (file("a", ["5"]), file("b", ["6", "7"], ["8", None]))
    raw = RawLog(None, {}, (0, 1), files, (), 5, False)
    shown = [raw.show(row, "t") for row in range(5)]
    assert shown == ["a row 1 '5'", "b row 1 '6'", "b row 2 '7'", "b row 3 '8'", "b row 4 None"]
    assert raw.show(3, "of a table that was joined") == "b row 3"
