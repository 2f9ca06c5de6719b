"""The prepared log on disk: integer columns laid out by user, memory-mapped, and what they mean.

A prepared log is a directory:

    events.arrow      one row an event, sorted by (user row, time, source row)
    users.arrow       one row a user: id, number of events, number of training events
    items.arrow       one row an item; row 0 is the unknown item
    values.arrow      the values of the category and the context columns; row 0 of each is unknown
    meta.json         format version, hashes, counts of every step, statistics
    prepare.flags     the options that made it, ready to run again
    report.html       the same for people: counts, drawings, warnings
    recbole/          with --write_recbole, the events as files of RecBole

The Arrow files are uncompressed IPC files of one record batch each, so a column is one contiguous
stretch of the file and opening a log reads none of it. Only numpy, pyarrow and the standard
library are needed to read one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stt_jax.data import recbole
from stt_jax.data.arrays import texts_to_arrow, to_arrow, to_numpy
from stt_jax.data.prepared_log import LogMeta, PreparedLog
from stt_jax.data.schema import (
    EVENT_DTYPES,
    TEST,
    TRAIN,
    UNKNOWN_E7,
    VALIDATION,
    StepCount,
)
from stt_jax.data.texts import Texts

__all__ = [
    "TEST",
    "TRAIN",
    "UNKNOWN_E7",
    "VALIDATION",
    "check_output",
    "open_log",
    "write_log",
]

FORMAT_VERSION = 5
# Version 1 had no numeric columns, 2 no traits, 3 no former hashes, 4 no forgotten items, and
# nothing else lacks.
_READ_VERSIONS = (1, 2, 3, 4, 5)
META_FILE = "meta.json"
FLAGS_FILE = "prepare.flags"
REPORT_FILE = "report.html"
TABLE_NAMES = ("events", "users", "items", "values")
CATEGORY_FIELD = "category"  # context columns are stored as "context:" + name


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
        ours = {FLAGS_FILE, REPORT_FILE, recbole.FOLDER, *(f"{name}.arrow" for name in TABLE_NAMES)}
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

    The files of an earlier log there are replaced, or removed where nobody writes them anew here:
    its report and its RecBole files tell of people who may be gone or have pseudonyms now. Other
    files are left alone. `meta.json` goes first and comes back last, so a directory with a
    `meta.json` holds a whole log.
    """
    tables = _to_tables(log)
    meta = dataclasses.replace(log.meta, data_hash=_hash_tables(tables))
    log.directory.mkdir(parents=True, exist_ok=True)
    (log.directory / META_FILE).unlink(missing_ok=True)
    (log.directory / REPORT_FILE).unlink(missing_ok=True)
    recbole.remove_recbole(log.directory / recbole.FOLDER)
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
    for name in ("former_hashes", "forgotten_items"):
        values[name] = tuple(values.get(name, ()))
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
