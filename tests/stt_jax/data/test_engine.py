"""DuckDB and Spark make the same bytes out of the same log."""

import datetime
import hashlib
import importlib.util
import random
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pytest

from stt_jax.config import PrepareConfig, flagfile
from stt_jax.data import times
from stt_jax.data.engine import DuckEngine, _java_pattern, open_engine
from stt_jax.data.preparation import prepare_log
from stt_jax.data.store import VALIDATION, open_log
from stt_jax.prepare import GROUPS
from tests.stt_jax.data.test_preparation import DATA_ROOT, ROOT, needs_data
from tests.stt_jax.data.test_values import EVERYTHING, make_config, random_events

needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="no pyspark (extra 'spark') or no Java here",
)

# Of a configuration whose engine alone is of interest.
ANYTHING = {"input": ("log.csv",), "output": "x", "user": "u", "item": "i", "time": "t"}


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """One session for all tests; whoever finds one running uses it."""
    import pyspark.sql

    folder = str(tmp_path_factory.mktemp("spark"))
    config = PrepareConfig(**ANYTHING, engine="spark", spark_master="local[2]")
    # Java's second compiler and parallel collector are for hours of work, not for a minute.
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", f"--driver-java-options '{java}' pyspark-shell")
        engine = open_engine(config, folder)
    # Compiling a query takes far longer than running it on so few rows.
    pyspark.sql.SparkSession.getActiveSession().conf.set("spark.sql.codegen.wholeStage", "false")
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def _only_our_warnings():
    # PySpark leaves sockets to the garbage collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def both(tmp_path, **options):
    """The digests of the log that each engine prepares."""
    found = []
    for engine in ("duckdb", "spark"):
        folder = tmp_path / engine
        prepare_log(PrepareConfig(**options | {"engine": engine, "output": str(folder)}))
        found.append(digests(folder))
    return found


@needs_spark
def test_every_step_gives_the_same_bytes_on_both(tmp_path, spark):
    pytest.importorskip("sklearn", reason="scikit-learn of the extra 'impute' is not installed")
    pytest.importorskip("h3", reason="h3 of the extra 'cells' is not installed")
    rows = random_events(300, 5)
    for row in random.Random(1).sample(rows, 30):
        row[3], row[4] = row[4], row[3]
    rows[7][0], rows[9][2] = "", "soon"
    config = make_config(tmp_path, [*rows, *rows[:9]], 40, **EVERYTHING)
    options = vars(config) | {
        "timezone": "Europe/Vienna",
        "drop_if": ("pieces>2",),
        "time_from": "2012-04-02T01:00",
        "min_item_events": 3,
        "min_user_events": 3,
        "pseudonymise": "users_and_items",
        "key_file": str(tmp_path / "key"),
        "make_key": True,
        "coarsen_cell": "10",
        "coarsen_time_s": 60,
    }
    duck, other = both(tmp_path, **options)
    assert duck == other


@needs_spark
def test_times_by_pattern_domains_traits_and_a_drawn_validation_are_alike(tmp_path, spark):
    lines = [
        f"u{i % 3},p{i % 5},{1 + i % 28}/4/2012 9:{i % 60:02}:07,{'news' if i % 2 else 'shop'},"
        f"{'red;big' if i % 5 else 'blue'},{20 + i % 3}"
        for i in range(60)
    ]
    broken = [
        "u1,p1,31/4/2012 9:00:00,shop,red,21",
        "u1,p1,soon,news,,21",
        "u2,p2,1/4/2012 9:00:00,,,",
    ]
    text = "\n".join(["user_id,item_id,t,shelf,looks,age", *lines, *broken])
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    duck, other = both(
        tmp_path,
        input=(str(tmp_path / "log.csv"),),
        time="t",
        time_format="%d/%m/%Y %H:%M:%S",
        domain="shelf",
        item_traits=("looks",),
        user_traits=("age",),
        split="leave_one_out",
        validation_users=0.6,
    )
    assert duck == other
    log = open_log(tmp_path / "spark")
    assert log.domain_values[1:] == ["news", "shop"]
    assert np.sum(log.parts == VALIDATION) == 1  # of three people, floor(3 * .6)
    assert {one.partition("/")[0] for one in log.item_ids[1:]} == {"news", "shop"}


@needs_spark
def test_the_date_line_blank_fields_large_numbers_and_fractions_are_alike(tmp_path, spark):
    draw = random.Random(2)
    lines = []
    for i in range(120):
        longitude = draw.choice(["179.9", "-179.9", "-179.8", "180", "-180", "179.99", "2", " "])
        user, kind = draw.choice(["a", "b", " ", " c"]), draw.choice(["bar", "", "  ", " zoo"])
        time = f"2012-10-12T01:0{i % 9}:{i % 50:02}.{i % 10}"
        prices = ["1", "1e39", "-1e308", "3.4028235e38", "3.4028236e38", " ", "x", "7"]
        price = draw.choice(prices)
        lines.append(f"{user},p{i % 7},{time},-17.{i % 10},{longitude},{kind},{price}")
    lines.append("b,p1,\t,1,1,\x0b,\x0c")
    text = "\n".join(["user_id,item_id,t,y,x,kind,price", *lines])
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    duck, other = both(
        tmp_path,
        input=(str(tmp_path / "log.csv"),),
        time="t",
        time_from="2012-10-12T01:00:04.4",
        time_to="2012-10-12T01:08:20.5Z",
        latitude="y",
        longitude="x",
        category="kind",
        numeric=("price",),
        drop_if=("kind=zoo",),
        drop_missing=("price",),
        fill=("y:median_user", "price:mean"),
        features=("centre_km",),
        max_speed_kmh=2000.0,
        normalise=("price:zscore",),
        split="leave_one_out",
        max_broken_fraction=1.0,
        write_recbole=True,
    )
    assert duck == other
    log = open_log(tmp_path / "spark")
    assert np.all(np.abs(log.item_longitudes_e7[1:].astype(np.int64)) > 1_790_000_000)
    assert set(log.user_ids) == {"a", "b", " c"}
    assert not np.isinf(log.numbers["price"]).any()


@needs_spark
def test_weekdays_and_offsets_in_a_pattern_are_read_by_spark_too(spark):
    rows = pa.table({"row": [0, 1], "t": ["Tue Apr 03 18:00:09 +0200 2012", "Tue soon"]})
    text = spark.insert("weekdays", rows.schema, [rows])
    pattern = "%a %b %d %H:%M:%S %z %Y"
    found = spark.fetch(
        text.mutate(us=spark.to_micros(spark.parse_time(text.t, pattern))).order_by("row")
    )
    moment = datetime.datetime(2012, 4, 3, 16, 0, 9, tzinfo=datetime.UTC)
    assert found["us"].to_pylist() == [int(moment.timestamp()) * 1_000_000, None]
    read = spark.fetch(times.read_times(text.rename(time="t"), pattern, spark).order_by("row"))
    assert read["zone_s"].to_pylist() == [7_200, 0]
    assert read["time_s"].to_pylist() == [int(moment.timestamp()) + 7_200, None]


@needs_spark
@needs_data
def test_new_york_is_the_same_on_both(tmp_path, spark):
    path = ROOT / "configs" / "prepare" / "nyc.flags"
    argv = ["", f"--flagfile={path}", f"--data_root={DATA_ROOT}", "--output=x"]
    groups = flagfile.parse(GROUPS, argv)
    options = {key: value for group in groups.values() for key, value in vars(group).items()}
    duck, other = both(tmp_path, **options)
    assert duck == other


def test_patterns_that_spark_cannot_read_are_refused():
    assert _java_pattern("%d/%m/%Y um %H:%M") == "d/M/yyyy 'u''m' H:m"
    with pytest.raises(ValueError, match="%U is not known to --engine=spark"):
        _java_pattern("%Y %U")


def test_without_pyspark_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    with pytest.raises(ValueError, match=r"pip install 'stt_jax\[spark\]'"):
        open_engine(
            PrepareConfig(**ANYTHING, engine="spark", spark_master="local[1]"), str(tmp_path)
        )


def test_duckdb_is_the_default(tmp_path):
    engine = open_engine(PrepareConfig(**ANYTHING, threads=1), str(tmp_path))
    assert isinstance(engine, DuckEngine)
    engine.close()
