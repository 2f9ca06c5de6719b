import dataclasses
import gzip

import numpy as np
import pytest

from stt_jax.config import InputOptions, PrepareConfig
from stt_jax.data.layouts import LAYOUTS, apply_layout
from stt_jax.data.preparation import prepare_log
from stt_jax.data.recbole import PART_FILES
from tests.stt_jax.data.test_preparation import config_for, random_rows, write_csv

# The first lines of each kind of file, as published.
SAMPLES = {
    "foursquare_tsmc2014": (
        "470\t49bbd6c0f964a520f4531fe3\t4bf58dd8d48988d127951735\tArts & Crafts Store\t"
        "40.719810375488535\t-74.00258103213994\t-240\tTue Apr 03 18:00:09 +0000 2012\n"
        "979\t4a43c0aef964a520c6a61fe3\t4bf58dd8d48988d1df941735\tCaf\xe9\t"
        "40.60679958140643\t-74.04416981025437\t-240\tTue Apr 03 18:00:25 +0000 2012\n"
    ),
    "gowalla_snap": (
        "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n"
        "0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315\n"
    ),
    "getnext": (
        "user_id,POI_id,POI_catid,POI_catid_code,POI_catname,latitude,longitude,timezone,UTC_time,"
        "local_time,day_of_week,norm_in_day_time,trajectory_id,norm_day_shift,norm_relative_time\n"
        "470,x,c,1,Bar,40.7,-74.0,-240,2012-04-03 18:00:09+00:00,2012-04-03 14:00:09-04:00,1,0.6,"
        "470_1,0,0\n"
    ),
    "movielens": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n",
    "recbole": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
    ),
    "online_retail": (
        "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
        "489434,85048,LIGHTS,12,2009-12-01 07:45:00,6.95,13085,United Kingdom\n"
        "C489435,85048,LIGHTS,-1,2009-12-01 08:45:00,6.95,13085,United Kingdom\n"
    ),
    "globo": (
        "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,"
        "click_environment,click_deviceGroup,click_os,click_country,click_region,"
        "click_referrer_type\n"
        "0,1506825423271737,1506825423000,2,119592,1506826828020,4,3,20,1,20,2\n"
    ),
    "generic": "Customer-ID,lat,lng,Product ID,Title,DATE\n7,1.5,2.5,a,Mug,2020-01-02\n",
}


def config(tmp_path, layout, **options):
    encoding = "latin-1" if layout == "foursquare_tsmc2014" else "utf-8"
    path = tmp_path / "log.txt.gz"
    path.write_bytes(gzip.compress(SAMPLES[layout].encode(encoding)))
    options = {"validation_fraction": 0.0, "test_fraction": 0.0} | options
    return PrepareConfig(input=(str(path),), output=str(tmp_path / "out"), layout=layout, **options)


@pytest.mark.parametrize(
    ("layout", "users", "items"),
    [
        ("foursquare_tsmc2014", ["470", "979"], 2),
        ("gowalla_snap", ["0"], 2),
        ("getnext", ["470"], 1),
        ("movielens", ["1"], 2),
        ("recbole", ["196"], 1),
        ("online_retail", ["13085"], 1),
        ("globo", ["0"], 1),
        ("generic", ["7"], 1),
    ],
)
def test_files_are_read_by_the_name_of_their_layout(tmp_path, layout, users, items):
    log = prepare_log(config(tmp_path, layout))
    assert list(log.user_ids) == users
    assert log.num_items == items
    assert log.meta.has_times
    assert log.meta.has_places == (
        layout in ("foursquare_tsmc2014", "gowalla_snap", "getnext", "generic")
    )
    assert "--layout=\n" in (tmp_path / "out" / "prepare.flags").read_text(encoding="utf-8")
    # What a model reads has one scale.
    assert all(log.meta.numerics[name][-1]["kind"] == "zscore" for name in log.numbers)
    assert ("numeric" in LAYOUTS[layout]) == bool(log.numbers)
    if layout == "foursquare_tsmc2014":
        assert log.category_values[-1] == "Café"
        assert log.utc_offsets_s[0] == -14_400


def test_every_layout_has_a_sample_and_a_flag():
    flag = next(f for f in dataclasses.fields(InputOptions) if f.name == "layout")
    assert set(LAYOUTS) == set(SAMPLES) == set(flag.metadata["choices"]) - {""}


def test_explicit_options_override(tmp_path):
    given = config(tmp_path, "getnext", category="POI_catid", session_gap_h=3.0, timezone="UTC")
    made = apply_layout(given)
    assert (made.category, made.session, made.item) == ("POI_catid", "", "POI_id")
    assert (made.timezone, made.utc_offset_column) == ("UTC", "")
    assert apply_layout(made) == made


def test_movielens_takes_titles_from_a_table_of_items(tmp_path):
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n2,Heat,Crime|Drama\n", "utf-8")
    log = prepare_log(config(tmp_path, "movielens", items=str(tmp_path / "movies.csv")))
    assert list(log.item_names) == ["", "Heat", "29"]
    assert log.numbers["rating"].tolist() == [0, 0]  # both at the mean


def test_numbers_of_ones_own_choice_bring_no_scales_of_the_layout(tmp_path):
    own = prepare_log(config(tmp_path, "online_retail", numeric=("Price",)))
    assert own.numbers["Price"].tolist() == [pytest.approx(6.95)]
    assert list(own.numbers) == ["Price"]


def test_generic_needs_a_pair_of_coordinates(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,time,lat\na,b,2020-01-01,5\n", encoding="utf-8")
    made = apply_layout(PrepareConfig(input=(str(path),), output="x", layout="generic"))
    assert (made.user, made.item, made.time, made.latitude) == ("user", "item", "time", "")


def test_recbole_files_hold_the_same_events_and_split(tmp_path):
    write_csv(tmp_path / "log.csv", [row for row in random_rows(300, 8) if row[2]])
    log = prepare_log(config_for(tmp_path / "log.csv", tmp_path / "out", write_recbole=True))
    parts = [str(tmp_path / "out" / "recbole" / name) for name in PART_FILES]
    again = prepare_log(
        PrepareConfig(
            input=(parts[0],),
            validation_input=(parts[1],),
            test_input=(parts[2],),
            split="given",
            layout="recbole",
            output=str(tmp_path / "again"),
            latitude="latitude",
            longitude="longitude",
            context=("device",),
            keep_duplicates=True,
        )
    )
    assert again.meta.split_hash == log.meta.split_hash
    assert again.latitudes_e7.tolist() == log.latitudes_e7.tolist()
    assert again.contexts["device"].tolist() == log.contexts["device"].tolist()
    items = (tmp_path / "out" / "recbole" / "log.item").read_text(encoding="utf-8").splitlines()
    assert items[0] == "item_id:token\tname:token_seq\tcategory:token"
    assert len(items) == log.num_items + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"item": "sku", "context": ("item_id",)}, "'item_id'.*the item.*--context.*rename it"),
        ({"time": "when", "numeric": ("timestamp",)}, "'timestamp'.*the time.*--numeric"),
        ({"latitude": "y", "longitude": "x", "numeric": ("latitude",)}, "'latitude'.*the latitude"),
        ({"context": ("item_type",), "numeric": ("item_type",)}, "'item_type'.*--context.*--num"),
    ],
)
def test_columns_of_recbole_are_not_silently_replaced(tmp_path, options, words):
    # The file is not there: it is refused before anything is read.
    config = PrepareConfig(
        **{"input": (str(tmp_path / "no.csv"),), "output": "x", "time": "t", "write_recbole": True}
        | options
    )
    with pytest.raises(ValueError, match=f"--write_recbole: .*{words}"):
        prepare_log(config)
    # Without times or places RecBole has no column for them, and these names are free.
    free = {"numeric": ("timestamp", "latitude"), "context": (), "latitude": "", "longitude": ""}
    untimed = {"time": "", "untimed": True, "split": "leave_one_out"}
    with pytest.raises(OSError, match=r"no\.csv"):
        prepare_log(dataclasses.replace(config, **free | untimed))


def test_recbole_files_hold_every_digit_of_a_number(tmp_path):
    texts = ["9.99", "1e-9", "-1.5e-20", "3", "123456789", "3.4e38", "", "0.1"]
    rows = [
        (f"u{n % 2}", f"p{n % 3}", str(1_333_476_000 + n), "40.7128001", "-74.0059999", text)
        for n, text in enumerate(texts)
    ]
    write_csv(tmp_path / "log.csv", rows, ("user_id", "item_id", "t", "lat", "lon", "price"))
    log = prepare_log(
        PrepareConfig(
            input=(str(tmp_path / "log.csv"),),
            output=str(tmp_path / "out"),
            time="t",
            latitude="lat",
            longitude="lon",
            numeric=("price",),
            write_recbole=True,
            validation_fraction=0.0,
            test_fraction=0.0,
        )
    )
    header, *lines = (tmp_path / "out" / "recbole" / PART_FILES[0]).read_text("utf-8").splitlines()
    assert header.endswith("latitude:float\tlongitude:float\tprice:float")
    fields = [line.split("\t") for line in lines]
    assert {tuple(field[3:5]) for field in fields} == {("40.7128001", "-74.0059999")}
    written = [field[5] for field in fields]
    found = np.array([text or "nan" for text in written], np.float32)
    np.testing.assert_array_equal(found, log.numbers["price"])
    assert {"9.99", "3", "0.1", ""} <= set(written)
