"""Items that training did not know: a table of them, appended to what a log says of its items.

They get the rows behind those of the training part. A model has no vector of their ids, so it goes
by what the table says: category, traits and place (see `model.embedding.ItemEmbedding`).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from stt_jax.config import DOMAIN, ColumnOptions, flagfile
from stt_jax.data.files import ReadOptions
from stt_jax.data.formats import open_file
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.pseudonyms import Ids, hides_items, open_ids
from stt_jax.data.schema import DEGREES_TO_E7, UNKNOWN_E7
from stt_jax.data.store import FLAGS_FILE, open_log
from stt_jax.data.traits import find_values, split_values


def open_with_items(data: str | os.PathLike, items: str, key_file: str = "") -> PreparedLog:
    """Opens a prepared log, with the items of a file if one is named, see `read_new_items`."""
    log = open_log(data)
    return read_new_items(log, items, key_file) if items else log


def read_new_items(
    log: PreparedLog,
    path: str | os.PathLike,
    key_file: str = "",
    note_known: Callable[[int], None] | None = None,
) -> PreparedLog:
    """The log with the items of a file, as `add_items`.

    The file has the columns that the table of items had, or the log itself, when the log was
    prepared: those of --items_key or else --item, and where they are there of --name, --category,
    --item_traits, --latitude and --longitude; with --domain that has to be there too. Where the
    log's items have pseudonyms, the new ones get theirs by the key. `note_known` is that of
    `add_items`.

    Raises:
      ValueError, OSError: the file cannot be read or has no column of ids; the key is missing or
        another, see `pseudonyms.open_ids`; or as `add_items`.
    """
    known = Ids()
    if hides_items(log):
        known = open_ids(log, key_file, needed=True)
    options = _column_options(log)
    file = open_file(pathlib.Path(path), ReadOptions())
    key = options.items_key or options.item
    if key not in file.names:
        raise ValueError(
            f"--items={path} has no column {key!r} with the ids of the items; its columns are "
            f"{', '.join(file.names)}"
        )
    tables = list(file.batches(list(range(len(file.names)))))
    if not sum(map(len, tables)):  # of a header alone there is not even an empty table
        raise ValueError(f"--items={path} has no rows; leave out --items, or name the new items")
    table = pa.concat_tables(tables)
    columns = {name: table.column(number).to_pylist() for number, name in enumerate(file.names)}
    roles = {
        role: columns[getattr(options, role)]
        for role in ("name", "category", "latitude", "longitude")
        if getattr(options, role) in columns
    }
    traits = {
        name: [split_values(text, options.trait_separator) for text in columns[name]]
        for name in log.item_traits
        if name in columns and name != DOMAIN
    }
    ids = columns[key]
    if log.domain_values:
        domains = _read_domains(log, options.domain, columns, path)
        ids = [item and f"{domain}/{item}" for domain, item in zip(domains, ids, strict=True)]
        traits[DOMAIN] = [[domain] for domain in domains]
    ids = [item and known.item(item) for item in ids]
    where = f"--items={path}"
    return add_items(log, ids, traits=traits, where=where, note_known=note_known, **roles)


def _read_domains(
    log: PreparedLog, column: str, columns: Mapping[str, list[str]], path: str | os.PathLike
) -> list[str]:
    """The domain of each row."""
    if column not in columns:
        raise ValueError(
            f"--items={path} has no column {column!r}, which says what domain an item is of; its "
            f"columns are {', '.join(columns)}"
        )
    for row, domain in enumerate(columns[column], start=1):
        if domain not in log.domain_values[1:]:
            raise ValueError(
                f"--items={path} row {row}: {domain or ''!r} is none of the log's domains "
                f"{', '.join(log.domain_values[1:])}; a new domain has to be trained"
            )
    return columns[column]


def _column_options(log: PreparedLog) -> ColumnOptions:
    """Which column is what, as when the log was prepared."""
    names = {field.name for field in dataclasses.fields(ColumnOptions)}
    lines = (log.directory / FLAGS_FILE).read_text(encoding="utf-8").splitlines()
    own = [line for line in lines if line.partition("=")[0].removeprefix("--") in names]
    options = flagfile.parse({"columns": ColumnOptions}, ["", *own])["columns"]
    assert isinstance(options, ColumnOptions)
    return options


def add_items(
    log: PreparedLog,
    ids: Sequence[str | None],
    *,
    name: Sequence[str | None] | None = None,
    category: Sequence[str | None] | None = None,
    latitude: Sequence[str | None] | None = None,
    longitude: Sequence[str | None] | None = None,
    traits: Mapping[str, Sequence[Sequence[str]]] | None = None,
    where: str = "the table of items",
    note_known: Callable[[int], None] | None = None,
) -> PreparedLog:
    """The log with further items, rows V + 1 on, without any event.

    Args:
      log: a prepared log.
      ids: of the new items.
      name, category, latitude, longitude: texts of each, degrees; None or "" = unknown. So is a
        category that the log does not have, and the place (0, 0), see `clean.mark_places`.
      traits: name -> values of each item; unknown values are left out, and of more than the model
        has room for the rarest.
      where: what a message calls the table.
      note_known: leave out the items that the log has already, and tell this how many there were,
        if any; None = they are an error.

    Raises:
      ValueError: an item without an id, one that is there already, or a place that is none.
    """
    of_log = set(log.item_ids[1:])
    seen = dict.fromkeys(of_log, "is an item of the log already")
    kept = []
    for row, item_id in enumerate(ids, start=1):
        if not item_id:
            raise ValueError(f"{where} row {row}: the item has no id")
        if note_known and item_id in of_log:
            continue
        kept.append(row - 1)
        if item_id in seen:
            raise ValueError(f"{where} row {row}: {item_id!r} {seen[item_id]}; leave it out")
        seen[item_id] = "is there twice"
    num_told = len(ids)
    if note_known and len(kept) < num_told:
        note_known(num_told - len(kept))
    rows = {category: row for row, category in enumerate(log.category_values) if row}
    categories = [rows.get(text or "", 0) for text in category or [None] * num_told]
    places = [
        _degrees_e7(texts or [None] * num_told, limit, f"{where}: {axis}")
        for texts, limit, axis in ((latitude, 90, "latitude"), (longitude, 180, "longitude"))
    ]
    known = (places[0] != UNKNOWN_E7) & (places[1] != UNKNOWN_E7)
    known &= (places[0] != 0) | (places[1] != 0)  # a missing one, as in preparing
    latitudes, longitudes = (np.where(known, place, UNKNOWN_E7) for place in places)

    def append(old: np.ndarray, new: np.ndarray | list[int]) -> np.ndarray:
        new = np.asarray(new, old.dtype).reshape(num_told, *old.shape[1:])
        return np.concatenate([old, new[kept]])

    of_items, names = traits or {}, name or ids
    return dataclasses.replace(
        log,
        item_ids=[*log.item_ids, *(str(ids[row]) for row in kept)],
        item_names=[*log.item_names, *(names[row] or str(ids[row]) for row in kept)],
        item_latitudes_e7=append(log.item_latitudes_e7, latitudes),
        item_longitudes_e7=append(log.item_longitudes_e7, longitudes),
        item_categories=append(log.item_categories, categories),
        item_train_counts=append(log.item_train_counts, [0] * num_told),
        item_traits={
            trait: append(
                column,
                find_values(
                    of_items.get(trait, [()] * num_told),
                    log.item_trait_values[trait],
                    column.shape[1],
                ),
            )
            for trait, column in log.item_traits.items()
        },
    )


def _degrees_e7(texts: Sequence[str | None], limit: int, where: str) -> np.ndarray:
    """int32, degrees * 1e7; UNKNOWN_E7 where there is no text."""
    found = np.full(len(texts), UNKNOWN_E7, np.int32)
    for row, text in enumerate(texts):
        if not text:
            continue
        try:
            degrees = float(text)
        except ValueError:
            degrees = np.nan
        if not abs(degrees) <= limit:
            raise ValueError(f"{where} {text!r} in row {row + 1} is not within {limit} degrees")
        found[row] = round(degrees * DEGREES_TO_E7)
    return found
