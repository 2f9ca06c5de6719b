"""What the options about values do to a whole log, and that the test part never shapes it."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data.numerics import apply_stages
from stt_jax.data.preparation import prepare_log
from stt_jax.data.store import TRAIN, UNKNOWN_E7
from stt_jax.data.values import _run_stage
from tests.stt_jax.data.event_columns import make_columns

COLUMNS = ("who", "what", "when", "lat", "lon", "kind", "device", "price", "pieces")
START_S = 1_333_324_800
EVERYTHING = {
    "numeric": ("price", "pieces"),
    "outliers": ("price:mad:6", "pieces:quantile:0.01"),
    "fill": (
        "price:mode_item",
        "price:interpolate",
        "price:model",
        "pieces:median_user",
        "pieces:mean",
        "kind:mode_item",
        "kind:model",
        "device:mode",
        "lat:interpolate",
        "lat:model",
    ),
    "smooth": ("price:median:3", "pieces:exponential:0.4", "lon:kalman:30"),
    "features": ("gap_h", "step_km", "centre_km", "hour", "weekday", "scenario"),
    "cells": ("7", "9"),
    "transform": ("price:boxcox", "pieces:quantile", "gap_h:log1p"),
    "normalise": ("price:zscore", "gap_h:robust", "centre_km:minmax"),
    "session_gap_h": 6.0,
    "dedupe_window_s": 30.0,
    "max_events_per_day": 30,
    "max_speed_kmh": 2000.0,
}


def random_events(num_events, seed):
    """Rows in the order of time, with something missing in every column that may miss it."""
    draw = random.Random(seed)
    rows = []
    for number in range(num_events):
        item = draw.randrange(12)
        place = (f"{40 + item / 100 + draw.random() / 2000:.6f}", f"{-74 + item / 50:.6f}")
        rows.append(
            [
                f"u{draw.randrange(5)}",
                f"p{item}",
                str(START_S + number * 3700 + draw.randrange(3000)),
                *(place if draw.random() < 0.8 else ("", "")),
                draw.choice(["bar", "zoo", ""]),
                draw.choice(["phone", "web", ""]),
                draw.choice(["", f"{draw.lognormvariate(2, 1):.2f}", "9.5"]),
                draw.choice(["", "1", "2", "3", "many"]),
            ]
        )
    return rows


def write_csv(path, rows):
    path.write_text("\n".join(",".join(row) for row in [COLUMNS, *rows]) + "\n", encoding="utf-8")
    return str(path)


def make_config(tmp_path, rows, num_test, **options):
    """A config whose last `num_test` rows are the test part."""
    tmp_path.mkdir(exist_ok=True)
    return PrepareConfig(
        input=(write_csv(tmp_path / "train.csv", rows[:-num_test]),),
        test_input=(write_csv(tmp_path / "test.csv", rows[-num_test:]),),
        split="given",
        output=str(tmp_path / "out"),
        user="who",
        item="what",
        time="when",
        latitude="lat",
        longitude="lon",
        category="kind",
        context=("device",),
        max_broken_fraction=1.0,
        **options,
    )


def training_bytes(log):
    """Every byte of the training events and of what was fitted to them."""
    train = log.parts == TRAIN
    arrays = {
        **{f"c:{k}": v[train] for k, v in log.contexts.items()},
        **{f"n:{k}": v[train] for k, v in log.numbers.items()},
        **{f"m:{k}": v[train] for k, v in log.was_missing.items()},
        **{
            name: getattr(log, name)[train]
            for name in (
                "items",
                "times",
                "utc_offsets_s",
                "latitudes_e7",
                "longitudes_e7",
                "categories",
            )
        },
        # Sessions are numbered through the log; which events share one is what counts.
        "sessions": np.unique(log.sessions[train], return_inverse=True)[1],
        **{
            field.name: getattr(log, field.name)
            for field in dataclasses.fields(log)
            if field.name.startswith("item_") and field.name.endswith(("_e7", "ies", "counts"))
        },
    }
    fitted = (
        list(log.item_ids),
        list(log.item_names),
        list(log.category_values),
        {name: list(texts) for name, texts in log.context_values.items()},
        log.meta.numerics,
        log.user_ids[: log.num_train_users],
    )
    return {name: values.tobytes() for name, values in arrays.items()}, fitted


@pytest.fixture(scope="module")
def events():
    return random_events(300, 1)


@pytest.fixture(scope="module")
def everything(tmp_path_factory, events):
    pytest.importorskip("sklearn", reason="scikit-learn of the extra 'impute' is not installed")
    pytest.importorskip("h3", reason="h3 of the extra 'cells' is not installed")
    steps = []
    config = make_config(tmp_path_factory.mktemp("all"), events, 40, **EVERYTHING)
    return prepare_log(config, announce=steps.append), steps


@pytest.mark.parametrize(
    "changes",
    [
        {"when": str(START_S - 10**6)},  # now before all training events
        {"who": "u3", "when": str(START_S + 200 * 3700), "lat": "10.0", "price": "1e9"},
        {"what": "p1", "kind": "never seen", "device": "phone", "pieces": "", "lat": "", "lon": ""},
    ],
    ids=["earlier", "in the middle", "other values"],
)
def test_a_changed_test_event_changes_no_training_byte(tmp_path, events, everything, changes):
    changed = [list(row) for row in events]
    row = next(r for r in changed[-20:] if r[0] != "u3" and r[3] and r[8])
    for column, value in changes.items():
        row[COLUMNS.index(column)] = value
    log = prepare_log(make_config(tmp_path / "changed", changed, 40, **EVERYTHING))
    before, after = training_bytes(everything[0]), training_bytes(log)
    assert before[1] == after[1]
    for name, content in before[0].items():
        assert after[0][name] == content, name
    assert everything[0].meta.data_hash != log.meta.data_hash


def test_a_changed_training_event_does_change_them(tmp_path, events, everything):
    changed = [list(row) for row in events]
    for row in changed[:100]:
        row[7] = "11.11"
    log = prepare_log(make_config(tmp_path / "changed", changed, 40, **EVERYTHING))
    assert training_bytes(everything[0])[1] != training_bytes(log)[1]


def test_all_steps_are_counted_and_nothing_stays_unknown(everything):
    log, steps = everything
    names = [step.name for step in steps]
    wanted = ["ids", "places", "numbers", "duplicates", "near duplicates", "bots", "speed", "split"]
    wanted += ["outliers", "fill", "smooth", "features", "transform", "normalise"]
    found = [name.split(":")[0] for name in names]
    assert [name for name in found if name in wanted] == wanted
    for before, after in itertools.pairwise(steps):
        assert before.name.startswith("read") or after.rows_in == before.rows_out
    for name in ("price", "pieces"):
        assert not np.isnan(log.numbers[name]).any()
        assert 0 < log.was_missing[name].sum() < log.num_events
    assert set(log.was_missing) == {"price", "pieces", "kind", "device", "place"}
    assert log.meta.statistics["events_without_place"] == 0
    before, after = log.meta.statistics["num_missing"]["price"]
    assert before == log.was_missing["price"].sum()
    assert after == 0
    assert list(log.contexts) == ["device", "scenario", "cell_7", "cell_9"]
    assert set(log.numbers) >= {"gap_h", "centre_km", "hour_sin", "weekday_cos"}
    fill = next(step for step in steps if step.name == "fill")
    assert sum(n for text, n in fill.changed.items() if text.startswith("price")) == before


def test_serving_gives_the_numbers_of_preparing(tmp_path, events):
    config = make_config(
        tmp_path,
        events,
        40,
        numeric=("price",),
        outliers=("price:mad:6",),
        fill=("price:median",),
        smooth=("price:exponential:0.4",),
        transform=("price:boxcox",),
        normalise=("price:zscore",),
    )
    log = prepare_log(config)
    row = log.user_row("u2")
    own = slice(log.user_offsets[row], log.user_offsets[row + 1])
    raw = [float(r[7]) if r[7] else np.nan for r in events if r[0] == "u2"]
    np.testing.assert_array_equal(
        apply_stages(log.meta.numerics["price"], np.array(raw)), log.numbers["price"][own]
    )


def test_numbers_are_kept_as_they_are_without_rules(tmp_path, events):
    log = prepare_log(make_config(tmp_path, events, 40, numeric=("pieces",)))
    row = log.user_row("u0")
    own = slice(log.user_offsets[row], log.user_offsets[row + 1])
    wanted = [float(r[8]) if r[8].isdigit() else np.nan for r in events if r[0] == "u0"]
    np.testing.assert_array_equal(log.numbers["pieces"][own], np.array(wanted, np.float32))
    np.testing.assert_array_equal(log.was_missing["pieces"][own], np.isnan(wanted))
    assert log.numbers["pieces"].dtype == np.float32


@pytest.mark.parametrize("role", ["numeric", "category"])
def test_a_column_called_place_is_not_the_coordinates(tmp_path, monkeypatch, role):
    monkeypatch.setitem(globals(), "COLUMNS", ("place", *COLUMNS[1:]))
    rows = [["" if n % 4 == 0 else "7.5", *row[1:]] for n, row in enumerate(random_events(60, 1))]
    options = {"numeric": ("place",)} if role == "numeric" else {"category": "place"}
    rules = ("place:mode", "lat:median")
    config = make_config(tmp_path, rows, 10, fill=rules[:1])
    prepared = []
    for fill in (rules[:1], rules):
        changed = vars(config) | options | {"user": "device", "context": (), "fill": fill}
        changed["output"] = str(tmp_path / f"{len(fill)} fills")
        prepared.append(prepare_log(PrepareConfig(**changed)))
    for log in prepared:
        own = log.numbers["place"] if role == "numeric" else log.categories
        assert np.all(own == (7.5 if role == "numeric" else 1))
        assert log.was_missing["place"].sum() == sum(not row[0] and bool(row[6]) for row in rows)
    without = prepared[0].latitudes_e7 == UNKNOWN_E7
    assert without.any()  # only the second one fills them
    assert prepared[1].meta.statistics["events_without_place"] == 0
    np.testing.assert_array_equal(prepared[1].was_missing["place (lat, lon)"], without)
    assert prepared[1].meta.statistics["num_missing"]["place (lat, lon)"] == [without.sum(), 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fill": ("cost:mean",)}, "'cost' is no column for it; these are device, kind, lat, lon"),
        ({"normalise": ("price:zscore",)}, "these are none: name columns by --numeric"),
        ({"numeric": ("price",), "smooth": ("price:exponential:2",)}, "a weight in"),
        ({"numeric": ("price",), "outliers": ("price:quantile:0.7",)}, "quantile:0 to 0.5"),
        ({"numeric": ("price",), "fill": ("price:constant:inf",)}, "is numeric; give a number"),
        ({"numeric": ("price",), "fill": ("price:constant:1e39",)}, "a number within 3.4e38"),
        ({"fill": ("lat:mean",)}, "lat is a coordinate"),
        ({"smooth": ("lat:kalman:far",)}, "'far' is not a number"),
        ({"smooth": ("lat:kalman:nan",)}, "--smooth=lat:kalman:nan: 'nan' is not a number"),
        ({"smooth": ("lat:kalman:inf",)}, "--smooth=lat:kalman:inf: 'inf' is not a number"),
        ({"smooth": ("lat:kalman:1e200",)}, "1e200: the error of a fix is 0.01 to 20,000,000 met"),
        ({"smooth": ("lat:kalman:-5",)}, "-5: the error of a fix is 0.01 to"),
        ({"smooth": ("lat:kalman:0",)}, "0: the error of a fix is 0.01 to"),
        ({"smooth": ("lat:kalman:1e-200",)}, "1e-200: the error of a fix is 0.01 to"),
        ({"numeric": ("price",), "smooth": ("price:median:inf",)}, "'inf' is not a number"),
        ({"numeric": ("price",), "smooth": ("price:median:1e9",)}, "takes 1 to 1000 events"),
        ({"numeric": ("price",), "smooth": ("price:median:2.7",)}, "takes 1 to 1000 events"),
        ({"numeric": ("price",), "outliers": ("price:mad:inf",)}, "'inf' is not a number"),
        (
            {"numeric": ("price",), "transform": ("price:quantile:0.05",)},
            "--transform=price:quantile:0.05: quantile takes no number, 0.05; write price:quantile",
        ),
        ({"numeric": ("price",), "transform": ("price:log1p:0",)}, "log1p takes no number, 0"),
        ({"numeric": ("price",), "normalise": ("price:zscore:2",)}, "zscore takes no number, 2"),
    ],
)
def test_wrong_rules_are_refused(tmp_path, events, options, words):
    with pytest.raises(ValueError, match=words):
        prepare_log(make_config(tmp_path, events, 40, **options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": ("speed",)}, "--features=speed is not known"),
        ({"cells": ("16",)}, "--cells=16 is no resolution"),
        ({"cells": ("7", "7")}, "names one twice"),
        ({"features": ("gap_h",), "numeric": ("gap_h",)}, "the name is that of a made feature"),
        ({"session": "who", "session_gap_h": 3.0}, "give one of --session"),
        ({"max_speed_kmh": -1.0}, "--max_speed_kmh must be 0 or more"),
    ],
)
def test_contradictions_are_refused(tmp_path, events, options, words):
    with pytest.raises(ValueError, match=words):
        make_config(tmp_path, events, 40, **options)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300, 10**30, -1])
@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("dedupe_window_s", "100,000,000,000"),
        ("max_events_per_day", "2,147,483,647"),
        ("max_speed_kmh", "1,000,000,000"),
        ("min_user_events", "2,147,483,647"),
        ("min_item_events", "2,147,483,647"),
        ("session_gap_h", "10,000,000"),
        ("coarsen_time_s", "100,000,000,000"),
        ("test_days", "1,000,000"),
        ("validation_days", "1,000,000"),
        ("memory_gb", "1,000,000"),
        ("threads", "1,024"),
    ],
)
def test_limits_beyond_reason_are_refused_by_flag_and_range(tmp_path, events, name, largest, value):
    with pytest.raises(ValueError, match=f"--{name} must be 0 or more and at most {largest}; got"):
        make_config(tmp_path, events, 40, **{name: value})


def test_limits_as_large_as_they_may_be_are_run(tmp_path, events):
    config = make_config(
        tmp_path,
        events,
        40,
        dedupe_window_s=1e11,
        max_events_per_day=2**31 - 1,
        max_speed_kmh=1e9,
        session_gap_h=1e7,
        coarsen_time_s=10**11,
        memory_gb=1e6,
        smooth=("lat:kalman:0.01",),
    )
    log = prepare_log(config)
    assert log.num_events == len({(row[0], row[1]) for row in events[:-40]}) + len(
        {(row[0], row[1]) for row in events[-40:]}
    )
    assert set(log.times.tolist()) == {0}
    options = vars(config) | {"split": "time", "test_input": (), "test_days": 1e6}
    options |= {"output": str(tmp_path / "days"), "overwrite": True}
    with pytest.raises(ValueError, match="check --test_from, --test_days"):
        prepare_log(PrepareConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"normalise": ("price:zscore",)},
        {"transform": ("price:log1p",), "normalise": ("price:robust",)},
        {"transform": ("price:quantile",)},
        {"fill": ("price:mean", "price:median_user")},
        {"smooth": ("price:median:2",)},
    ],
)
def test_values_too_large_to_be_kept_are_unknown_and_counted(tmp_path, options):
    """The mean of a few values of 1e308 is infinite, and so is one of them as float32."""
    rows = random_events(60, 1)
    huge = [(*row[:7], "1.6e308" if n % 3 else "-2e38", *row[8:]) for n, row in enumerate(rows)]
    log = prepare_log(make_config(tmp_path, huge, 10, numeric=("price",), **options))
    (numbers,) = [step for step in log.meta.steps if step.name == "numbers"]
    assert numbers.changed == {"price is beyond 3.4e38, the largest number of a log": 40}
    assert log.was_missing["price"].sum() == 40
    assert not np.isinf(log.numbers["price"]).any()


def test_values_too_large_to_be_fitted_are_refused_by_flag_and_column():
    columns = make_columns([0] * 4, numbers={"price": [-1.6e308, 1.6e308, 0, 1]})
    with pytest.raises(ValueError, match=r"--normalise=price:zscore: .*'price'.* are too large"):
        _run_stage(columns, {"price": []}, "normalise", "price:zscore", "price", "zscore", 0.0)
