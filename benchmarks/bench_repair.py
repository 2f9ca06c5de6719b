"""How much of what is hidden from a log does each way of filling and filtering bring back?

    python -m benchmarks.bench_repair --logs=prepared/nyc,prepared/gowalla

Hides a tenth and three tenths of the categories or places of a prepared log, or adds noise to its
places, repairs them with the functions that `prepare` uses, and compares with what was there. This
measures the repair itself, not yet what a model trained on the repaired log gains.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stt_jax.data import denoise, impute
from stt_jax.data.columns import Columns, distance_km
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import UNKNOWN_E7
from stt_jax.data.store import TRAIN, open_log

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "repair.json"
FRACTIONS = (0.1, 0.3)
CATEGORY_FILLS = ("mode", "mode_user", "mode_item", "model")
PLACE_FILLS = ("median", "median_user", "median_item", "interpolate", "model")
_METRES_PER_DEGREE = 111_195.0


def columns_of(log: PreparedLog) -> Columns:
    """The events of a prepared log as the steps see them."""
    return Columns(
        source_rows=np.arange(log.num_events),
        users=np.repeat(np.arange(log.num_users, dtype=np.int32), np.diff(log.user_offsets)),
        items=np.array(log.items),
        times_s=np.array(log.times),
        utc_offsets_s=np.array(log.utc_offsets_s, np.int64),
        parts=np.array(log.parts),
        latitudes_e7=np.array(log.latitudes_e7),
        longitudes_e7=np.array(log.longitudes_e7),
        numbers={},
        codes={"category": np.array(log.categories)},
        texts={"category": list(log.category_values)},
        was_missing={},
    )


def repair_categories(log: PreparedLog, fraction: float, methods: Sequence[str]) -> Iterator[dict]:
    """A row for each fill: how many hidden categories it fills, and how many rightly."""
    true = np.array(log.categories)
    hidden = (np.random.default_rng(1).random(len(true)) < fraction) & (true > 0)
    for method in methods:
        columns = columns_of(log)
        columns.codes["category"] = np.where(hidden, 0, true).astype(np.int32)
        fill = impute.Fill("category", method, "")
        seconds = _timed(functools.partial(impute.fill_texts, columns, "category", fill))
        found = columns.codes["category"]
        row: dict = {"what": "category", "hidden": fraction, "method": method, "seconds": seconds}
        for part, mask in (("train", log.parts == TRAIN), ("later", log.parts != TRAIN)):
            chosen = hidden & mask
            row[f"{part}_filled"] = _share(found[chosen] > 0)
            row[f"{part}_right"] = _share(found[chosen] == true[chosen])
        yield row


def repair_places(log: PreparedLog, fraction: float, methods: Sequence[str]) -> Iterator[dict]:
    """A row for each fill: how many hidden places it fills, and how near."""
    known = log.latitudes_e7 != UNKNOWN_E7
    hidden = (np.random.default_rng(2).random(log.num_events) < fraction) & known
    for method in methods:
        columns = columns_of(log)
        for degrees in (columns.latitudes_e7, columns.longitudes_e7):
            degrees[hidden] = UNKNOWN_E7
        fill = impute.Fill("latitude", method, "")
        seconds = _timed(functools.partial(impute.fill_places, columns, fill))
        row = {"what": "place", "hidden": fraction, "method": method, "seconds": seconds}
        yield row | _errors(log, columns, hidden)


def repair_noise(log: PreparedLog, error_m: float) -> Iterator[dict]:
    """Rows for noisy places: as they are, and through the Kalman filter."""
    draw = np.random.default_rng(3)
    known = log.latitudes_e7 != UNKNOWN_E7
    columns = columns_of(log)
    scale = error_m / _METRES_PER_DEGREE * 1e7
    shrink = np.maximum(np.cos(np.radians(log.latitudes_e7 * 1e-7)), 0.05)
    noise = draw.normal(0, scale, (2, log.num_events))
    for degrees, shift in (
        (columns.latitudes_e7, noise[0]),
        (columns.longitudes_e7, noise[1] / shrink),
    ):
        degrees[known] += np.rint(shift[known]).astype(np.int32)
    base = {"what": f"noise of {error_m:g} m", "hidden": 1.0}
    yield base | {"method": "none", "seconds": 0.0} | _errors(log, columns, known)

    def run() -> None:
        columns.latitudes_e7, columns.longitudes_e7 = denoise.filter_places(columns, error_m)

    seconds = _timed(run)
    yield base | {"method": "kalman", "seconds": seconds} | _errors(log, columns, known)


def _errors(log: PreparedLog, columns: Columns, hidden: np.ndarray) -> dict:
    km = distance_km(
        columns.latitudes_e7, columns.longitudes_e7, log.latitudes_e7, log.longitudes_e7
    )
    row: dict = {}
    for part, mask in (("train", log.parts == TRAIN), ("later", log.parts != TRAIN)):
        found = km[hidden & mask]
        filled = found[~np.isnan(found)]
        row[f"{part}_filled"] = _share(~np.isnan(found))
        row[f"{part}_median_km"] = round(float(np.median(filled)), 3) if len(filled) else None
        row[f"{part}_within_200_m"] = _share(found <= 0.2)
    return row


def _share(mask: np.ndarray) -> float:
    return round(float(np.mean(mask)), 4) if len(mask) else 0.0


def _timed(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return round(time.process_time() - began, 2)


def rows_of(log: PreparedLog, fractions: Sequence[float], *, models: bool) -> Iterator[dict]:
    """All rows of a log."""
    for fraction in fractions:
        if log.num_categories:
            yield from repair_categories(log, fraction, CATEGORY_FILLS[: None if models else -1])
        if log.meta.has_places:
            yield from repair_places(log, fraction, PLACE_FILLS[: None if models else -1])
    if log.meta.has_places:
        yield from repair_noise(log, 30.0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", default="", help="folders of prepared logs, comma separated")
    parser.add_argument("--no-models", action="store_true", help="leave boosted trees out")
    parser.add_argument("--output", default=str(RESULTS))
    options = parser.parse_args(argv)
    rows = []
    for folder in filter(None, options.logs.split(",")):
        log = open_log(folder)
        for row in rows_of(log, FRACTIONS, models=not options.no_models):
            rows.append({"log": pathlib.Path(folder).name, **row})
            print(json.dumps(rows[-1]), flush=True)
    pathlib.Path(options.output).write_text(
        json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
