"""A prepared log as RecBole atomic files, for a peer that must see the same events and split."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stt_jax.config import PrepareConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import UNKNOWN_E7

FOLDER = "recbole"
PART_FILES = ("log.train.inter", "log.valid.inter", "log.test.inter")
_ITEM_FILE = "log.item"


def check_columns(config: PrepareConfig) -> None:
    """Raises ValueError for a column whose name is in `write_recbole`'s files that of another."""
    owners = {"user_id": "the user", "item_id": "the item"}
    if config.time:
        owners["timestamp"] = "the time"
    if config.latitude:
        owners |= {"latitude": "the latitude", "longitude": "the longitude"}
    for flag in ("context", "numeric"):
        for name in getattr(config, flag):
            if name in owners:
                raise ValueError(
                    f"--write_recbole: {name!r} is the name of {owners[name]} in RecBole's files, "
                    f"and of a column of --{flag}; rename it in the log, or leave it out"
                )
            owners[name] = f"a column of --{flag}"


def write_recbole(log: PreparedLog, item_ids: pa.ChunkedArray, folder: pathlib.Path) -> None:
    """Writes log.train.inter, log.valid.inter, log.test.inter and log.item.

    RecBole takes the three by `benchmark_filename: [train, valid, test]`.

    Args:
      log: the prepared log.
      item_ids: text [N], the items of the events, those outside training too.
      folder: made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    columns: dict[str, Sequence | pa.ChunkedArray] = {
        "user_id:token": pa.array(list(log.user_ids), pa.string()).take(pa.array(users)),
        "item_id:token": item_ids,
    }
    if log.meta.has_times:
        columns["timestamp:float"] = log.times
    if log.meta.has_places:
        for name, degrees in (("latitude", log.latitudes_e7), ("longitude", log.longitudes_e7)):
            known = degrees != UNKNOWN_E7
            columns[f"{name}:float"] = np.where(known, degrees * 1e-7, np.nan)
    for name, codes in log.contexts.items():
        texts = pa.array(list(log.context_values[name]), pa.string())
        columns[f"{name}:token"] = texts.take(pa.array(codes))
    columns |= {f"{n}:float": values.astype(np.float32) for n, values in log.numbers.items()}
    lines = _lines(columns.values())
    header = "\t".join(map(_plain, columns))
    for part, file in enumerate(PART_FILES):
        chosen = lines.filter(pa.array(log.parts == part)).to_pylist()
        (folder / file).write_text("\n".join([header, *chosen]) + "\n", encoding="utf-8")
    items = {
        "item_id:token": log.item_ids[1:],
        "name:token_seq": log.item_names[1:],
        "category:token": [log.category_values[c] for c in log.item_categories[1:]],
    }
    text = "\n".join(["\t".join(items), *_lines(items.values()).to_pylist()]) + "\n"
    (folder / _ITEM_FILE).write_text(text, encoding="utf-8")


def remove_recbole(folder: pathlib.Path) -> None:
    """Removes what `write_recbole` wrote, and the folder if nothing else is in it."""
    for file in (*PART_FILES, _ITEM_FILE):
        (folder / file).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _lines(columns: Iterable) -> pa.Array:
    texts = []
    for column in columns:
        array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if pa.types.is_float32(array.type):
            # Arrow writes the fewest digits that tell a float32 from every other one.
            array = pc.if_else(pc.is_nan(array), None, array.cast(pa.string()))
        elif pa.types.is_floating(array.type):
            array = pa.array([_degrees(x) for x in array.to_pylist()])
        text = pc.fill_null(array.cast(pa.string()), "")
        texts.append(pc.replace_substring_regex(text, r"[\t\r\n]", " "))
    return pc.binary_join_element_wise(*texts, "\t")


def _degrees(value: float) -> str:
    """With seven digits, which are the places' own precision."""
    return "" if np.isnan(value) else f"{value:.7f}".rstrip("0").rstrip(".")


def _plain(name: str) -> str:
    return name.replace("\t", " ").replace("\n", " ")
