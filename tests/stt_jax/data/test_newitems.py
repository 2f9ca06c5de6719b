import numpy as np
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data.catalogue import catalogue
from stt_jax.data.newitems import add_items, open_with_items, read_new_items
from stt_jax.data.preparation import prepare_log
from stt_jax.data.pseudonyms import open_ids, open_key, pseudonym
from stt_jax.data.schema import UNKNOWN_E7
from stt_jax.data.store import open_log
from tests.stt_jax.tiny_logs import random_log


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user,item,time,lat,lon\na,x,1,40,-73\na,x,2,40,-73\nb,y,4,41,-74\n"
    )
    (tmp_path / "items.csv").write_text("id,title,kind,genre\nx,Ex,bar,loud|long\ny,,pub,long\n")
    prepare_log(
        PrepareConfig(
            input=("log.csv",),
            data_root=str(tmp_path),
            output=str(tmp_path / "out"),
            user="user",
            item="item",
            time="time",
            latitude="lat",
            longitude="lon",
            items="items.csv",
            items_key="id",
            name="title",
            category="kind",
            item_traits=("genre",),
            validation_fraction=0.0,
            test_fraction=0.0,
        )
    )
    return tmp_path / "out"


def test_a_table_adds_rows_behind_those_of_training_and_unknown_words_are_unknown(prepared):
    table = prepared.parent / "new.csv"
    table.write_text(
        "id,title,kind,genre,lat,lon,else\nz,Zed,pub,odd|loud,41.5,-74.5,1\nw,,zoo,,,-74,2\n"
    )
    log = open_with_items(prepared, str(table))
    assert list(log.item_ids) == ["", "x", "y", "z", "w"]
    assert list(log.item_names) == ["", "Ex", "y", "Zed", "w"]
    assert [log.category_values[row] for row in log.item_categories] == [
        "",
        "bar",
        "pub",
        "pub",
        "",
    ]
    assert log.item_traits["genre"].tolist() == [[0, 0], [1, 2], [1, 0], [2, 0], [0, 0]]
    assert log.item_latitudes_e7[3:].tolist() == [415_000_000, UNKNOWN_E7]
    assert log.item_longitudes_e7[3:].tolist() == [-745_000_000, UNKNOWN_E7]
    assert log.item_train_counts[3:].tolist() == [0, 0]
    assert log.item_row("z") == 3
    items = catalogue(log)
    assert np.flatnonzero(items.is_item).tolist() == [1, 2, 3, 4]
    assert not np.isnan(items.coords[3]).any()
    assert np.isnan(items.coords[4]).all()


def test_the_place_zero_zero_is_unknown_as_in_preparing(prepared):
    table = prepared.parent / "new.csv"
    table.write_text("id,lat,lon\nz,0,0.0\nw,0,6.7\n")
    log = open_with_items(prepared, str(table))
    assert log.item_latitudes_e7[3:].tolist() == [UNKNOWN_E7, 0]
    assert log.item_longitudes_e7[3:].tolist() == [UNKNOWN_E7, 67_000_000]


def test_without_a_table_the_log_is_as_it_was(prepared):
    assert list(open_with_items(prepared, "").item_ids) == ["", "x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,kind\nz,pub\ny,pub\n", "row 2: 'y' is an item of the log already; leave it out"),
        ("id,kind\nz,pub\nz,bar\n", "row 2: 'z' is there twice; leave it out"),
        ("id,kind\n,pub\n", "row 1: the item has no id"),
        ("name,kind\nz,pub\n", "no column 'id' with the ids of the items; its columns are name"),
        ("id,kind\n", "new.csv has no rows; leave out --items"),
        ("id,lat,lon\nz,91,0\n", "latitude '91' in row 1 is not within 90 degrees"),
        ("id,lat,lon\nz,1,east\n", "longitude 'east' in row 1 is not within 180 degrees"),
    ],
)
def test_errors_name_the_row_and_what_to_do(prepared, text, message):
    table = prepared.parent / "new.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_with_items(prepared, str(table))


def test_what_the_log_knows_is_left_out_and_counted_where_that_is_asked_for(prepared):
    table = prepared.parent / "new.csv"
    table.write_text("id,title,kind,genre,lat\ny,,pub,,\nz,Zed,pub,loud,41\nx,,,,\nw,,,long,42\n")
    log, counts = open_log(prepared), []
    longer = read_new_items(log, table, note_known=counts.append)
    assert counts == [2]
    table.write_text("id,title,kind,genre,lat\nz,Zed,pub,loud,41\nw,,,long,42\n")
    alone = read_new_items(log, table, note_known=counts.append)
    assert counts == [2]
    for name in ("item_ids", "item_names", "item_latitudes_e7", "item_categories", "item_traits"):
        np.testing.assert_equal(getattr(longer, name), getattr(alone, name))
    table.write_text("id\ny\nx\n")
    same = read_new_items(log, table, note_known=counts.append)
    assert list(same.item_ids) == list(log.item_ids)
    assert len(same.item_latitudes_e7) == len(log.item_latitudes_e7)
    table.write_text("id\ny\nz\nz\n")
    with pytest.raises(ValueError, match="row 3: 'z' is there twice"):
        read_new_items(log, table, note_known=counts.append)


@pytest.fixture
def hidden(tmp_path):
    """A log whose items have pseudonyms, and its key file."""
    (tmp_path / "log.csv").write_text("user,item,time\na,x,1\na,y,2\nb,y,4\n")
    prepare_log(
        PrepareConfig(
            input=(str(tmp_path / "log.csv"),),
            output=str(tmp_path / "hidden"),
            user="user",
            item="item",
            time="time",
            pseudonymise="users_and_items",
            key_file=str(tmp_path / "key"),
            make_key=True,
            validation_fraction=0.0,
            test_fraction=0.0,
        )
    )
    return tmp_path / "hidden", str(tmp_path / "key")


def test_new_items_get_pseudonyms_where_the_others_have_them(hidden):
    folder, key_file = hidden
    table = folder.parent / "new.csv"
    table.write_text("item\nz\n")
    log = open_with_items(folder, str(table), key_file)
    assert log.item_ids[-1] == log.item_names[-1] == pseudonym("z", open_key(key_file), "item")
    assert open_ids(log, key_file).item("z") == log.item_ids[-1]
    table.write_text("item\nz\nx\n")
    with pytest.raises(ValueError, match=r"row 2: '[0-9a-f]{32}' is an item of the log already"):
        open_with_items(folder, str(table), key_file)


def test_new_items_are_refused_without_the_key_of_the_others_pseudonyms(hidden):
    folder, _ = hidden
    table = folder.parent / "new.csv"
    table.write_text("item\nz\n")
    with pytest.raises(ValueError, match=r"holds pseudonyms: name the key .* by --key_file"):
        open_with_items(folder, str(table))


def test_an_item_keeps_as_many_values_as_the_model_has_room_for_the_frequent_ones_first():
    log = add_items(random_log(), ["new"], traits={"genres": [["late", "odd", "long", "loud"]]})
    assert log.item_traits["genres"][-1].tolist() == [1, 2]
