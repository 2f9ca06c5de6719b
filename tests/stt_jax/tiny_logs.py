"""Small prepared logs made in memory, for tests of everything that comes after preparing."""

import pathlib

import numpy as np

from stt_jax.data.numerics import apply_stages
from stt_jax.data.prepared_log import LogMeta, PreparedLog
from stt_jax.data.store import TRAIN, UNKNOWN_E7

FIRST_MONDAY = 1_333_324_800  # 2012-04-02 00:00 UTC, a Monday
STAGES = {
    "price": [{"kind": "log1p"}, {"kind": "zscore", "centre": 3.0, "scale": 1.1}],
    "pieces": [{"kind": "bounds", "low": 1.0, "high": 7.0}],
}


def random_log(
    *,
    seed: int = 0,
    num_users: int = 6,
    num_items: int = 11,
    max_events: int = 40,
    has_times: bool = True,
    has_places: bool = True,
    has_domains: bool = False,
    has_numbers: bool = False,
) -> PreparedLog:
    """A log with every awkward thing in it: unknown items and places, ties, users without train."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, max_events + 1, num_users)
    counts[0] = max_events
    offsets = np.concatenate([[0], np.cumsum(counts)])
    num_events = int(offsets[-1])
    num_train_users = num_users - 1
    parts = np.concatenate([_parts(count) for count in counts]).astype(np.int8)
    parts[offsets[num_train_users] :] = 2
    gaps = rng.integers(0, 4, num_events) * rng.integers(1, 90_000, num_events)
    times = np.concatenate([np.cumsum(g) for g in np.split(gaps, offsets[1:-1])]) + FIRST_MONDAY
    items = rng.integers(0, num_items + 1, num_events).astype(np.int32)
    item_places = rng.integers(-30_000, 30_000, (num_items + 1, 2))
    latitudes = (407_000_000 + item_places[items, 0]).astype(np.int32)
    longitudes = (-740_000_000 + item_places[items, 1]).astype(np.int32)
    unknown = (rng.random(num_events) < 0.1) | (not has_places)
    latitudes[unknown] = longitudes[unknown] = UNKNOWN_E7
    item_latitudes = (407_000_000 + item_places[:, 0]).astype(np.int32)
    item_longitudes = (-740_000_000 + item_places[:, 1]).astype(np.int32)
    if not has_places:
        item_latitudes[:] = item_longitudes[:] = UNKNOWN_E7
    item_latitudes[0] = item_longitudes[0] = UNKNOWN_E7
    names = [f"item {i}" for i in range(num_items + 1)]
    traits, trait_values = {"genres": _traits(num_items)}, {"genres": ["", "loud", "long", "late"]}
    if has_domains:
        of_items = np.arange(num_items + 1, dtype=np.int32) % 2 + 1
        of_items[0] = 0
        traits["domain"], trait_values["domain"] = of_items[:, None], ["", "shop", "news"]
    # A generator of its own: with numbers or without, the rest of the log is the same.
    numbers = _numbers(seed, num_events) if has_numbers else {}
    return PreparedLog(
        directory=pathlib.Path("tiny"),
        items=items,
        times=times.astype(np.int64) if has_times else np.zeros(num_events, np.int64),
        utc_offsets_s=np.full(num_events, -4 * 3600, np.int32),
        latitudes_e7=latitudes,
        longitudes_e7=longitudes,
        categories=(items % 4).astype(np.int32),
        contexts={"device": rng.integers(0, 3, num_events).astype(np.int32)},
        sessions=_sessions(offsets),
        parts=parts,
        user_offsets=offsets.astype(np.int64),
        num_train_users=num_train_users,
        user_ids=[f"u{i}" for i in range(num_users)],
        item_ids=["", *(f"i{i}" for i in range(1, num_items + 1))],
        item_names=names,
        item_latitudes_e7=item_latitudes,
        item_longitudes_e7=item_longitudes,
        item_categories=(np.arange(num_items + 1) % 4).astype(np.int32),
        item_train_counts=np.bincount(items[parts == TRAIN], minlength=num_items + 1),
        category_values=["", "a", "b", "c"],
        context_values={"device": ["", "phone", "desk"]},
        numbers={
            name: apply_stages(stages, numbers[name])
            for name, stages in (STAGES if has_numbers else {}).items()
        },
        was_missing={name: np.isnan(values).astype(np.int8) for name, values in numbers.items()},
        item_traits=traits,
        item_trait_values=trait_values,
        user_traits={"job": (np.arange(num_users) % 3).astype(np.int32)},
        user_trait_values={"job": ["", "baker", "poet"]},
        meta=LogMeta(
            format_version=1,
            data_hash="0" * 64,
            split_hash="0" * 64,
            has_times=has_times,
            has_places=has_places,
            time_format="",
            local_time="",
            steps=(),
            statistics={},
            warnings=(),
            numerics=STAGES if has_numbers else {},
        ),
    )


def raw_numbers(log: PreparedLog, seed: int) -> dict[str, np.ndarray]:
    """What the numeric columns of a `random_log` were before they were scaled."""
    return _numbers(seed, log.num_events)


def _numbers(seed: int, num_events: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    prices = np.round(rng.lognormal(3, 1, num_events), 2)
    prices[rng.random(num_events) < 0.2] = np.nan
    prices[rng.random(num_events) < 0.05] = 1e9
    return {"price": prices, "pieces": rng.integers(1, 9, num_events).astype(np.float64)}


def _traits(num_items: int) -> np.ndarray:
    """None, one or two of three values an item."""
    traits = np.zeros((num_items + 1, 2), np.int32)
    rows = np.arange(1, num_items + 1)
    traits[1:, 0] = rows % 4
    traits[1:, 1] = np.where((rows % 3 == 0) & (rows % 4 > 0), rows % 4 % 3 + 1, 0)
    return traits


def _parts(count: int) -> np.ndarray:
    parts = np.zeros(count, np.int64)
    if count >= 4:
        parts[-(count // 4) :] = 2
        parts[-(count // 2) : -(count // 4)] = 1
    return parts


def _sessions(offsets: np.ndarray) -> np.ndarray:
    """Sessions of three events, numbered from 1 over the whole log."""
    lengths = np.diff(offsets)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    new = within % 3 == 0
    return np.cumsum(new).astype(np.int32)
