"""Unknown values predicted by gradient-boosted trees, fitted to the training part.

What the trees see of an event: its hour and weekday, its place, the time since the event before,
how often training has its item and its user, and the other numeric and categorical columns, each
where known. Never the column to predict, nor anything of another person.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from stt_jax.data import dateline
from stt_jax.data.columns import PLACE, Columns

_MAX_ROWS = 200_000  # to fit to; more change little and take long
_MAX_CLASSES = 60  # the most frequent values; the others are never predicted
_DAY_S, _WEEK_S = 86_400, 7 * 86_400


def predict_number(columns: Columns, name: str, train: np.ndarray) -> np.ndarray:
    """float64 [N], predictions of a numeric column; NaN if there is nothing to fit to."""
    return _regress(_features(columns, without=name), columns.numbers[name], train)


def predict_place(columns: Columns, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes, float64 [N] in 1e-7 degrees."""
    features = _features(columns, without=PLACE)
    latitudes = _regress(features, columns.latitudes_e7.astype(np.float64), train)
    longitudes = _regress(features, _unrolled(columns, train), train)
    # The sum of many trees may reach a little beyond what they were fitted to.
    return np.clip(latitudes, -9e8, 9e8), dateline.roll(longitudes)


def _unrolled(columns: Columns, train: np.ndarray) -> np.ndarray:
    """float64 [N], longitudes in 1e-7 degrees that do not jump where training crosses a line."""
    everybody = np.zeros(len(columns), np.int64)
    cut = dateline.find_cuts(everybody, columns.longitudes_e7, train)
    return dateline.unroll(columns.longitudes_e7, cut[everybody])


def predict_text(columns: Columns, name: str, train: np.ndarray) -> np.ndarray:
    """int [N], predicted codes of a categorical column; 0 if there is nothing to fit to."""
    codes = columns.codes[name]
    counts = np.bincount(codes[train], minlength=len(columns.texts[name]))
    frequent = np.argsort(-counts, kind="stable")[:_MAX_CLASSES]
    frequent = frequent[counts[frequent] > 1]
    rows = _spread(np.flatnonzero(train & np.isin(codes, frequent)))
    if len(np.unique(codes[rows])) < 2:
        return np.full(len(codes), codes[rows[0]] if len(rows) else 0)
    features = _told(_features(columns, without=name), rows)
    model = _ensemble().HistGradientBoostingClassifier(
        max_iter=15, max_leaf_nodes=15, early_stopping=False, random_state=0
    )
    unknown = codes == 0
    found = np.zeros(len(codes), np.int64)
    with _one_thread():
        model.fit(features[rows], codes[rows])
        if unknown.any():
            found[unknown] = model.predict(features[unknown])
    return found


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Waiting for one another costs OpenMP's threads more than they save on a busy machine."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        yield


def _ensemble() -> Any:
    try:
        import sklearn.ensemble
    except ImportError as error:
        raise ValueError(
            f"--fill=...:model needs scikit-learn ({error}); pip install 'stt_jax[impute]'"
        ) from error
    return sklearn.ensemble


def _regress(features: np.ndarray, values: np.ndarray, train: np.ndarray) -> np.ndarray:
    rows = _spread(np.flatnonzero(train))
    if len(rows) == 0:
        return np.full(len(values), np.nan)
    features = _told(features, rows)
    model = _ensemble().HistGradientBoostingRegressor(
        max_iter=60, early_stopping=False, random_state=0
    )
    with _one_thread():
        model.fit(features[rows], values[rows])
        return model.predict(features)


def _spread(rows: np.ndarray) -> np.ndarray:
    """At most _MAX_ROWS of the rows, evenly taken."""
    return rows[:: -(-len(rows) // _MAX_ROWS)] if len(rows) else rows


def _told(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The features that are known of some row to fit to: the trees cannot bin one without."""
    return features[:, ~np.isnan(features[rows]).all(axis=0)]


def _features(columns: Columns, *, without: str | None) -> np.ndarray:
    """float64 [N, F], NaN where unknown."""
    local_s = columns.times_s + columns.utc_offsets_s
    before = columns.previous(np.ones(len(columns), bool))
    gaps_s = np.where(before >= 0, columns.times_s - columns.times_s[before], np.nan)
    train = columns.train_mask
    features = [
        (local_s % _DAY_S) / 3600,
        (local_s // _DAY_S + 3) % 7,
        np.log1p(np.maximum(gaps_s, 0)),
        np.bincount(columns.items[train], minlength=columns.items.max() + 1)[columns.items],
        np.bincount(columns.users[train], minlength=columns.users.max() + 1)[columns.users],
    ]
    if without is not PLACE:
        longitudes = _unrolled(columns, columns.place_mask & train)
        for degrees in (columns.latitudes_e7, longitudes):
            features.append(np.where(columns.place_mask, degrees * 1e-7, np.nan))
    features += [values for name, values in columns.numbers.items() if name != without]
    features += [
        np.where(codes > 0, codes, np.nan)
        for name, codes in columns.codes.items()
        if name != without
    ]
    return np.stack([np.asarray(feature, np.float64) for feature in features], axis=1)
