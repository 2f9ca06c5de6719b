"""The prepared log on disk: integer columns laid out by user, memory-mapped, and what they mean.

A prepared log is a directory:

    events.arrow      one row an event, sorted by (user row, time, source row)
    users.arrow       one row a user: id, number of events, number of training events
    items.arrow       one row an item; row 0 is the unknown item
    values.arrow      the values of the category and the context columns; row 0 of each is unknown
    meta.json         format version, hashes, counts of every step, statistics
    prepare.flags     the options that made it, ready to run again
    report.html       the same for people: counts, drawings, warnings

The Arrow files are uncompressed IPC files of one record batch each, so a column is one contiguous
stretch of the file and opening a log reads none of it. Only numpy, pyarrow and the standard
library are needed to read one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stt_jax.config import DOMAIN
from stt_jax.data.arrays import texts_to_arrow, to_arrow, to_numpy
from stt_jax.data.schema import (
    EVENT_DTYPES,
    TEST,
    TRAIN,
    UNKNOWN_E7,
    VALIDATION,
    StepCount,
)
from stt_jax.data.texts import Texts, find_sorted, near_ids

__all__ = [
    "TEST",
    "TRAIN",
    "UNKNOWN_E7",
    "VALIDATION",
    "LogMeta",
    "PreparedLog",
    "check_output",
    "open_log",
    "write_log",
]

FORMAT_VERSION = 3
_READ_VERSIONS = (1, 2, 3)  # version 1 had no numeric columns, 2 no traits, and nothing else lacks
META_FILE = "meta.json"
FLAGS_FILE = "prepare.flags"
REPORT_FILE = "report.html"
TABLE_NAMES = ("events", "users", "items", "values")
_STRETCH_EVENTS = 1 << 20
CATEGORY_FIELD = "category"  # context columns are stored as "context:" + name


@dataclasses.dataclass(frozen=True)
class LogMeta:
    """What `meta.json` holds. `statistics` is a flat mapping of names to numbers and words.

    `numerics` says of each numeric column what was done to it, for `numerics.apply_stages`.
    """

    format_version: int
    data_hash: str
    split_hash: str
    has_times: bool
    has_places: bool
    time_format: str
    local_time: str
    steps: tuple[StepCount, ...]
    statistics: dict[str, Any]
    warnings: tuple[str, ...]
    numerics: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedLog:
    """A prepared log: events by user, the vocabularies, the split. Arrays are read-only views.

    N events, U users, V items of the training part. Events of a user are in the order of their
    time, ties in the order of the source. Users that have training events come first, in the byte
    order of their ids; the others follow, in the same order. Items, categories and context values
    are numbered from 1 by falling number of training events, ties by byte order; 0 is unknown.

    Attributes:
      directory: where the log is stored.
      items: int32 [N], 1..V, or 0 for an item without training events (kept: it is context).
      times: int64 [N], unix seconds UTC; all 0 when `meta.has_times` is False.
      utc_offsets_s: int32 [N]; local time = times + utc_offsets_s.
      latitudes_e7, longitudes_e7: int32 [N], degrees * 1e7, UNKNOWN_E7 where not known.
      categories: int32 [N]; the event's own category, else its item's, else 0.
      contexts: column name -> int32 [N], further categorical columns of the event.
      sessions: int32 [N], numbered from 1 in stored order, one number a (user, session); 0 = none.
      parts: int8 [N], TRAIN, VALIDATION or TEST.
      user_offsets: int64 [U + 1]; user row u owns events user_offsets[u]:user_offsets[u + 1].
      num_train_users: user rows below this have training events.
      user_ids: str [U].
      item_ids, item_names: str [V + 1]; an item without a name has its id for a name.
      item_latitudes_e7, item_longitudes_e7: int32 [V + 1], lower medians of the training events.
      item_categories: int32 [V + 1], the most frequent one in the training events.
      item_train_counts: int64 [V + 1].
      category_values: str [C + 1], row 0 = "".
      context_values: column name -> the same for a context column.
      meta: hashes, counts and statistics.
      numbers: column name -> float32 [N], NaN where unknown; numeric columns of the event and made
        features, as --fill, --smooth, --transform and --normalise have left them.
      was_missing: column name ("place": the coordinates) -> int8 [N], 1 where the log itself had no
        value to use; for every numeric and every filled column.
      item_traits: name -> int32 [V + 1, M], values that an item has, most frequent first, 0 = no
        further one.
      item_trait_values: name -> str [C + 1], row 0 = "".
      user_traits: name -> int32 [U], 0 = unknown.
      user_trait_values: name -> the same for a trait of people.
    """

    directory: pathlib.Path
    items: np.ndarray
    times: np.ndarray
    utc_offsets_s: np.ndarray
    latitudes_e7: np.ndarray
    longitudes_e7: np.ndarray
    categories: np.ndarray
    contexts: dict[str, np.ndarray]
    sessions: np.ndarray
    parts: np.ndarray
    user_offsets: np.ndarray
    num_train_users: int
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    item_names: Sequence[str]
    item_latitudes_e7: np.ndarray
    item_longitudes_e7: np.ndarray
    item_categories: np.ndarray
    item_train_counts: np.ndarray
    category_values: Sequence[str]
    context_values: dict[str, Sequence[str]]
    meta: LogMeta
    numbers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    was_missing: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_trait_values: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    user_traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    user_trait_values: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def num_events(self) -> int:
        """N, events of all parts."""
        return len(self.items)

    @property
    def num_users(self) -> int:
        """U, users of all parts."""
        return len(self.user_offsets) - 1

    @property
    def num_items(self) -> int:
        """V, without the unknown item: valid item rows are 1..V."""
        return len(self.item_ids) - 1

    @property
    def num_categories(self) -> int:
        """C, without the unknown category: valid category rows are 1..C."""
        return len(self.category_values) - 1

    @property
    def domain_values(self) -> Sequence[str]:
        """Names of the domains from row 1 on; empty for a log without --domain."""
        return self.item_trait_values.get(DOMAIN, ())

    @property
    def item_domains(self) -> np.ndarray:
        """int32 [V + 1], the domain of each item; 0 for the unknown item, or without --domain."""
        if DOMAIN not in self.item_traits:
            return np.zeros(self.num_items + 1, np.int32)
        return self.item_traits[DOMAIN][:, 0]

    def stretches(self) -> Iterator[tuple[slice, slice]]:
        """(user rows, their events) from first to last: whole users, about a million events each.

        Whoever looks at all events looks at them so, and a log larger than memory is no trouble.
        """
        first = 0
        while first < self.num_users:
            start = int(self.user_offsets[first])
            end = int(np.searchsorted(self.user_offsets, start + _STRETCH_EVENTS))
            end = min(max(end, first + 1), self.num_users)
            yield slice(first, end), slice(start, int(self.user_offsets[end]))
            first = end

    def user_row(self, user_id: str) -> int:
        """The row of a user; ValueError names near ids when there is no such user."""
        for first, last in ((0, self.num_train_users), (self.num_train_users, self.num_users)):
            row = find_sorted(self.user_ids, user_id, first, last)
            if row < last and self.user_ids[row] == user_id:
                return row
        row = find_sorted(self.user_ids, user_id, 0, self.num_train_users)
        raise ValueError(
            f"user {user_id!r} is not in {self.directory}; "
            f"near ids: {near_ids(self.user_ids, user_id, row)}"
        )

    def has_item(self, item_id: str) -> bool:
        """Whether training saw an item."""
        return item_id in self._item_rows

    def item_row(self, item_id: str) -> int:
        """The row of an item; ValueError names near ids when training never saw it."""
        row = self._item_rows.get(item_id, 0)
        if row == 0:
            raise ValueError(
                f"item {item_id!r} is not among the training items of {self.directory}; "
                f"near ids: {near_ids(self.item_ids[1:], item_id, 0)}"
            )
        return row

    @functools.cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids) if row > 0}


def check_output(directory: str | os.PathLike, *, overwrite: bool) -> None:
    """Raises unless a log can be written to `directory` without harming what is there."""
    directory = pathlib.Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output={directory} is a file; name a directory")
    if (directory / META_FILE).exists() and not overwrite:
        raise ValueError(
            f"--output={directory} already holds a prepared log; add --overwrite to replace it"
        )
    if directory.exists() and not (directory / META_FILE).exists():
        ours = {FLAGS_FILE, REPORT_FILE, "recbole", *(f"{name}.arrow" for name in TABLE_NAMES)}
        foreign = sorted(path.name for path in directory.iterdir() if path.name not in ours)
        if foreign:
            raise ValueError(
                f"--output={directory} holds other files ({', '.join(foreign[:3])}); "
                "name an empty or a new directory"
            )
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise OSError(f"--output={directory} cannot be written: no permission in {parent}")


def write_log(log: PreparedLog, flags_text: str) -> None:
    """Writes `log` to `log.directory`; `log.meta.data_hash` is computed, whatever it holds.

    The files of an earlier log there are replaced; other files are left alone. `meta.json` goes
    first and comes back last, so a directory with a `meta.json` holds a whole log.
    """
    tables = _to_tables(log)
    meta = dataclasses.replace(log.meta, data_hash=_hash_tables(tables))
    log.directory.mkdir(parents=True, exist_ok=True)
    (log.directory / META_FILE).unlink(missing_ok=True)
    for name, table in tables.items():
        # A new file, not the old one rewritten: someone may have the old one mapped.
        path = log.directory / f"{name}.arrow"
        path.unlink(missing_ok=True)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
    (log.directory / FLAGS_FILE).write_text(flags_text, encoding="utf-8")
    text = json.dumps(dataclasses.asdict(meta), indent=1, ensure_ascii=False)
    (log.directory / META_FILE).write_text(text + "\n", encoding="utf-8")


def open_log(path: str | os.PathLike) -> PreparedLog:
    """Opens a prepared log, memory-mapped.

    Raises:
      ValueError: `path` is no directory with a prepared log, or one of another format version, or
        its files are damaged.
    """
    directory = pathlib.Path(path)
    meta = _read_meta(directory)
    try:
        tables = {name: _map_table(directory / f"{name}.arrow") for name in TABLE_NAMES}
        log = _from_tables(directory, meta, tables)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(
            f"{directory} is a damaged prepared log ({error}); run stt_jax.prepare again"
        ) from error
    if log.user_offsets[-1] != log.num_events:
        raise ValueError(
            f"{directory} is a damaged prepared log: users.arrow counts {log.user_offsets[-1]} "
            f"events, events.arrow has {log.num_events}; run stt_jax.prepare again"
        )
    return log


def _read_meta(directory: pathlib.Path) -> LogMeta:
    path = directory / META_FILE
    if not path.is_file():
        what = "no prepared log (no meta.json)" if directory.is_dir() else "not a directory"
        raise ValueError(f"{directory} is {what}; make one with python -m stt_jax.prepare")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run stt_jax.prepare again") from error
    if version not in _READ_VERSIONS:
        raise ValueError(
            f"{directory} has format version {version}, this program reads "
            f"{', '.join(map(str, _READ_VERSIONS))}; run stt_jax.prepare again"
        )
    values["steps"] = tuple(StepCount(**step) for step in values["steps"])
    values["warnings"] = tuple(values["warnings"])
    return LogMeta(**values)


def _map_table(path: pathlib.Path) -> pa.RecordBatch:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if reader.num_record_batches != 1:
        raise pa.ArrowInvalid(f"{path.name} has {reader.num_record_batches} record batches, not 1")
    return reader.get_batch(0)


def _to_tables(log: PreparedLog) -> dict[str, pa.RecordBatch]:
    events = {name: getattr(log, name) for name in EVENT_DTYPES}
    events |= {f"context:{name}": values for name, values in log.contexts.items()}
    events |= {f"number:{name}": values for name, values in log.numbers.items()}
    events |= {f"missing:{name}": values for name, values in log.was_missing.items()}
    train_counts = [
        np.add.reduceat(
            log.parts[events] == TRAIN, log.user_offsets[users] - events.start, dtype=np.int64
        )
        for users, events in log.stretches()
    ]
    users = {
        "ids": log.user_ids,
        "event_counts": np.diff(log.user_offsets),
        "train_counts": np.concatenate(train_counts),
        **{f"trait:{name}": values for name, values in log.user_traits.items()},
    }
    items = {
        "ids": log.item_ids,
        "names": log.item_names,
        "latitudes_e7": log.item_latitudes_e7,
        "longitudes_e7": log.item_longitudes_e7,
        "categories": log.item_categories,
        "train_counts": log.item_train_counts,
        **{
            f"trait:{name}:{slot}": values
            for name, column in log.item_traits.items()
            for slot, values in enumerate(np.ascontiguousarray(column.T))
        },
    }
    vocabularies: dict[str, Sequence[str]] = {CATEGORY_FIELD: log.category_values}
    for kind, of_kind in (
        ("context", log.context_values),
        ("item", log.item_trait_values),
        ("user", log.user_trait_values),
    ):
        vocabularies |= {f"{kind}:{name}": values for name, values in of_kind.items()}
    values = {
        "fields": [name for name, texts in vocabularies.items() for _ in texts],
        "values": [text for texts in vocabularies.values() for text in texts],
    }
    tables: dict[str, Mapping[str, Any]] = dict(
        zip(TABLE_NAMES, (events, users, items, values), strict=True)
    )
    return {
        name: pa.RecordBatch.from_pydict({key: _to_array(column) for key, column in table.items()})
        for name, table in tables.items()
    }


def _to_array(column: np.ndarray | Sequence[str]) -> pa.Array:
    if isinstance(column, np.ndarray):
        return to_arrow(column)
    return column.array if isinstance(column, Texts) else texts_to_arrow(column)


def _from_tables(
    directory: pathlib.Path, meta: LogMeta, tables: Mapping[str, pa.RecordBatch]
) -> PreparedLog:
    events, users, items = tables["events"], tables["users"], tables["items"]
    vocabularies = _split_values(tables["values"])
    of_kinds: list[dict[str, Sequence[str]]] = [
        {
            name.removeprefix(kind): texts
            for name, texts in vocabularies.items()
            if name.startswith(kind)
        }
        for kind in ("context:", "item:", "user:")
    ]
    contexts, item_traits, user_traits = of_kinds
    return PreparedLog(
        directory=directory,
        **{name: _view(events, name) for name in EVENT_DTYPES},
        contexts={name: _view(events, f"context:{name}") for name in contexts},
        user_offsets=np.concatenate(([0], np.cumsum(_view(users, "event_counts")))),
        num_train_users=int(np.count_nonzero(_view(users, "train_counts"))),
        user_ids=Texts(users.column("ids")),
        item_ids=Texts(items.column("ids")),
        item_names=Texts(items.column("names")),
        item_latitudes_e7=_view(items, "latitudes_e7"),
        item_longitudes_e7=_view(items, "longitudes_e7"),
        item_categories=_view(items, "categories"),
        item_train_counts=_view(items, "train_counts"),
        category_values=vocabularies[CATEGORY_FIELD],
        context_values=contexts,
        meta=meta,
        numbers=_views_of(events, "number:"),
        was_missing=_views_of(events, "missing:"),
        item_traits={
            name: np.stack(list(_views_of(items, f"trait:{name}:").values()), axis=1)
            for name in item_traits
        },
        item_trait_values=item_traits,
        user_traits={name: _view(users, f"trait:{name}") for name in user_traits},
        user_trait_values=user_traits,
    )


def _views_of(events: pa.RecordBatch, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): _view(events, name)
        for name in events.schema.names
        if name.startswith(prefix)
    }


def _view(table: pa.RecordBatch, name: str) -> np.ndarray:
    return to_numpy(table.column(name))


def _split_values(table: pa.RecordBatch) -> dict[str, list[str]]:
    vocabularies: dict[str, list[str]] = {}
    for field, value in zip(
        table.column("fields").to_pylist(), table.column("values").to_pylist(), strict=True
    ):
        vocabularies.setdefault(field, []).append(value)
    return vocabularies


def _hash_tables(tables: Mapping[str, pa.RecordBatch]) -> str:
    """sha256 over names, types and values: another Arrow may lay out the file bytes anew."""
    digest = hashlib.sha256()
    for table_name, table in tables.items():
        for name, column in zip(table.schema.names, table.columns, strict=True):
            digest.update(f"{table_name}/{name}/{column.type}/{len(column)}\n".encode())
            for part in _value_bytes(column):
                digest.update(part)
    return digest.hexdigest()


def _value_bytes(column: pa.Array) -> Iterable[Any]:
    if pa.types.is_string(column.type):
        texts = [text.encode() for text in column.to_pylist()]
        yield np.array([len(text) for text in texts], np.int64).tobytes()
        yield b"".join(texts)
    else:
        yield to_numpy(column).data
