"""The cleaned and split table -> the arrays of a prepared log, with its statistics."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis.expr import types as ir

from stt_jax.config import DOMAIN, PrepareConfig
from stt_jax.data import store, vocabulary
from stt_jax.data.arrays import texts_to_arrow, to_arrow, to_numpy
from stt_jax.data.columnfiles import ColumnFiles
from stt_jax.data.findings import describe_log, find_warnings
from stt_jax.data.prepared_log import TIME_GRID, LogMeta, PreparedLog
from stt_jax.data.schema import (
    EVENT_DTYPES,
    PART_NAMES,
    UNKNOWN_E7,
)
from stt_jax.data.split import Cuts
from stt_jax.data.steps import Steps
from stt_jax.data.texts import Texts
from stt_jax.data.traits import encode_item_trait, encode_user_trait, parse_user_trait
from stt_jax.data.values import Values

_STORED_ORDER = ("user_row", "time_s", "time_us", "source_row")


@dataclasses.dataclass(frozen=True)
class Clock:
    """What was found out about the times, in words for the report."""

    time_format: str
    local_time: str


def assemble_log(
    steps: Steps,
    config: PrepareConfig,
    clock: Clock,
    cuts: Cuts | None,
    refined: Values,
    folder: pathlib.Path,
) -> PreparedLog:
    """Numbers users, items, categories, contexts and sessions, and lays the events out by user.

    The events come out of the engine in their order and go to disk some users at a time, so what
    this holds in memory grows with users, items and values, and not with the events.

    Args:
      steps: its table has one row an event: source_row, part, user, item, time_s, time_us,
        utc_offset_s, latitude_e7, longitude_e7; where the log has them, text or null category,
        name and session; traits, and the columns of `refined`.
      config: names the output folder.
      clock: words for the times.
      cuts: where a split by time has cut, for the statistics.
      refined: the context and numeric columns.
      folder: for the columns of the events; they are mapped from there.
    """
    engine = steps.engine
    absent = {"category", "name"} - set(steps.table.columns)
    table = steps.table.mutate(**dict.fromkeys(sorted(absent), ibis.null("string")))
    users = engine.store("users", vocabulary.number_users(table))
    traits = {f"item_trait_{i}": name for i, name in enumerate(config.item_traits)}
    if config.domain:
        traits["domain"] = DOMAIN
    described = ["item", "name", "category", *traits, "latitude_e7", "longitude_e7"]
    counts = engine.store("counts", vocabulary.count_events(table, described))
    items = engine.store("item_rows", vocabulary.number_items(counts))
    values = {
        "category": engine.store("category_rows", vocabulary.number_values(counts, "category"))
    }
    of_items = _describe_items(counts, items, values["category"], traits, config.trait_separator)
    engine.drop("counts")
    for field in refined.contexts.values():
        of_field = vocabulary.count_events(table, [field])
        values[field] = engine.store(f"{field}_rows", vocabulary.number_values(of_field, field))
    dtypes: dict[str, Any] = {
        **EVENT_DTYPES,
        **{f"{column}_row": np.int32 for column in refined.contexts.values()},
        **{column: np.float32 for column in refined.numbers.values()},
        **{column: np.int8 for column in refined.flags.values()},
    }
    events, split_hash = _write_events(
        engine.stream(_encode_events(table, users, {"item": items, **values}, refined)),
        ColumnFiles(folder, dtypes),
        of_items["item_categories"],
        users.order_by("user_row").to_pyarrow()["user"].combine_chunks(),
        items.order_by("row").to_pyarrow()["value"].combine_chunks(),
        config.session_gap_h,
    )
    columns: dict[str, Any] = {
        **{name: events[name] for name in EVENT_DTYPES},
        **_describe_users(table, users, config),
        **of_items,
        "category_values": _texts(values["category"]),
        "contexts": {n: events[f"{column}_row"] for n, column in refined.contexts.items()},
        "context_values": {n: _texts(values[column]) for n, column in refined.contexts.items()},
        "numbers": {name: events[column] for name, column in refined.numbers.items()},
        "was_missing": {name: events[column] for name, column in refined.flags.items()},
    }
    meta = LogMeta(
        format_version=store.FORMAT_VERSION,
        data_hash="",
        split_hash=split_hash,
        has_times=bool(config.time),
        has_places=False,
        time_format=clock.time_format,
        local_time=clock.local_time,
        steps=tuple(steps.counts),
        statistics={},
        warnings=(),
        numerics=refined.stages,
    )
    log = PreparedLog(directory=pathlib.Path(config.output), meta=meta, **columns)
    statistics = describe_log(log)
    has_places = statistics["events_without_place"] < log.num_events
    statistics |= dataclasses.asdict(cuts) if cuts else {}
    if config.coarsen_time_s:
        statistics[TIME_GRID] = config.coarsen_time_s
    if refined.num_missing:
        statistics["num_missing"] = refined.num_missing
    meta = dataclasses.replace(
        meta, has_places=has_places, statistics=statistics, warnings=find_warnings(log)
    )
    return dataclasses.replace(log, meta=meta)


def fetch_items(steps: Steps) -> pa.ChunkedArray:
    """The items' ids of the events in stored order, after `assemble_log`."""
    users = steps.engine.connection.table("users")
    ordered = _number_users(steps.table, users).order_by(*_STORED_ORDER)
    return steps.engine.fetch(ordered.select("item"))["item"]


def _number_users(table: ir.Table, users: ir.Table) -> ir.Table:
    return table.join(users.select("user", "user_row"), "user")


def _encode_events(
    table: ir.Table, users: ir.Table, values: Mapping[str, ir.Table], refined: Values
) -> ir.Table:
    """The numeric columns of the events and the text of the session, in stored order.

    Each item has its row in `values`, those that training does not know, too: what is sorted here
    is sorted on disk if the log is large, so it should be narrow.
    """
    coded = _number_users(table, users)
    for field, rows in values.items():
        coded = vocabulary.encode(coded, field, rows, name=f"{field}_row")
    return coded.order_by(*_STORED_ORDER).select(
        "user_row",
        *({"session"} & set(table.columns)),
        *(f"{field}_row" for field in values if field.startswith("context_")),
        *refined.numbers.values(),
        *refined.flags.values(),
        items="item_row",
        categories="category_row",
        times="time_s",
        utc_offsets_s=coded.utc_offset_s.cast("int32"),
        latitudes_e7="latitude_e7",
        longitudes_e7="longitude_e7",
        parts="part",
    )


def _write_events(
    batches: Iterable[pa.Table],
    files: ColumnFiles,
    item_categories: np.ndarray,
    user_texts: pa.StringArray,
    item_texts: pa.StringArray,
    session_gap_h: float,
) -> tuple[dict[str, np.ndarray], str]:
    """Takes the events of `_encode_events` to disk.

    Returns:
      the columns, mapped, and the sha256 of the lines.
    """
    digest = hashlib.sha256()
    num_sessions = 0

    def with_lines(events: pa.Table) -> tuple[pa.Table, pa.ChunkedArray]:
        return events, split_lines(events, user_texts, item_texts)

    for events, lines in _at_once(with_lines, _whole_users(batches)):
        _hash_texts(digest, lines)
        columns = {
            name: to_numpy(column)
            for name, column in zip(events.column_names, events.columns, strict=True)
            if name != "session"
        }
        known = columns["items"] < len(item_categories)
        columns["items"] = np.where(known, columns["items"], 0)
        users, sessions = columns["user_row"], np.zeros(len(events), np.int32)
        if session_gap_h:
            sessions = sessions_by_gap(users, columns["times"], session_gap_h, num_sessions)
        elif "session" in events.column_names:
            sessions = number_sessions(users, events["session"], num_sessions)
        columns["sessions"] = sessions
        num_sessions = max(num_sessions, int(sessions.max()))
        # Without a known category of its own, an event has its item's.
        own = columns["categories"]
        columns["categories"] = np.where(own == 0, item_categories[columns["items"]], own)
        files.append(columns)
    return files.map(), digest.hexdigest()


def _at_once(function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
    """As `map`, on two threads, for what Arrow computes while Python does something else."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        coming: collections.deque[concurrent.futures.Future] = collections.deque()
        for value in values:
            coming.append(pool.submit(function, value))
            if len(coming) > 2:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def split_lines(
    events: pa.Table, user_texts: pa.StringArray, item_texts: pa.StringArray
) -> pa.ChunkedArray:
    """Text of each event: "user<TAB>item<TAB>seconds<TAB>part" and a line feed.

    Args:
      events: int32 `user_row` from 0, int32 `items` from 1, int64 `times`, int8 `parts`.
      user_texts, item_texts: ids in the order of these rows.
    """
    # Not Arrow's own arrays and scalars: they import pandas, which takes a second.
    parts = texts_to_arrow([f"{name}\n" for name in PART_NAMES])
    (tab,) = texts_to_arrow(["\t"])
    return pc.binary_join_element_wise(
        user_texts.take(events["user_row"]),
        item_texts.take(to_arrow(to_numpy(events["items"]) - 1)),
        events["times"].cast(pa.string()),
        parts.take(events["parts"]),
        tab,
    )


def _whole_users(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, cut so that all events of a user are in one table."""
    waiting: list[pa.Table] = []
    for batch in batches:
        if len(batch) == 0:
            continue
        user_rows = to_numpy(batch["user_row"])
        start = int(np.searchsorted(user_rows, user_rows[-1]))
        if start:
            yield pa.concat_tables([*waiting, batch.slice(0, start)])
            waiting = []
        waiting.append(batch.slice(start))
    if waiting:
        yield pa.concat_tables(waiting)


def sessions_by_gap(
    user_rows: np.ndarray, times_s: np.ndarray, gap_h: float, num_before: int
) -> np.ndarray:
    """Numbers of the sessions, the events of a user between two pauses of more than `gap_h` hours.

    Args:
      user_rows: int [n], the user of each event; all events of these users, in order.
      times_s: int64 [n].
      gap_h: hours.
      num_before: sessions of the users before.

    Returns:
      int32 [n], from num_before + 1 on.
    """
    begins = np.ones(len(user_rows), bool)
    begins[1:] = np.diff(times_s) > round(gap_h * 3600)
    begins[1:] |= user_rows[1:] != user_rows[:-1]
    return (num_before + np.cumsum(begins)).astype(np.int32)


def number_sessions(
    user_rows: np.ndarray, sessions: pa.ChunkedArray, num_before: int
) -> np.ndarray:
    """Numbers of the sessions, in the order of their first events.

    Args:
      user_rows: int [n], the user of each event; all events of these users.
      sessions: text [n], null where there is none. A session is a user's: two users may write the
        same text.
      num_before: sessions of the users before.

    Returns:
      int32 [n], from num_before + 1 on; 0 = no session.
    """
    numbers = np.zeros(len(user_rows), np.int32)
    if sessions.null_count == len(sessions):
        return numbers
    known = to_numpy(sessions.is_valid().cast(pa.int8())).astype(bool)
    texts = sessions.drop_null().combine_chunks().dictionary_encode()
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    keys = user_rows[known].astype(np.int64) * len(texts.dictionary) + to_numpy(texts.indices)
    _, firsts, which = np.unique(keys, return_index=True, return_inverse=True)
    ranks = np.empty(len(firsts), np.int32)
    ranks[np.argsort(firsts)] = np.arange(1, len(firsts) + 1)
    numbers[known] = num_before + ranks[which]
    return numbers


def _hash_texts(digest: Any, column: pa.ChunkedArray) -> None:
    for chunk in column.cast(pa.large_string()).chunks:
        _, offset_bytes, text = chunk.buffers()
        offsets = np.frombuffer(offset_bytes, np.int64)
        start, end = offsets[chunk.offset], offsets[chunk.offset + len(chunk)]
        digest.update(memoryview(text)[start:end])


def _describe_users(table: ir.Table, users: ir.Table, config: PrepareConfig) -> dict[str, Any]:
    for i in range(len(config.user_traits)):
        counts = vocabulary.count_events(table, ["user", f"user_trait_{i}"])
        counts = vocabulary.of_training_first(counts, "user")
        found = vocabulary.most_frequent(counts, f"user_trait_{i}", of="user")
        users = users.left_join(found, "user").drop("user_right")
    columns = users.order_by("user_row").to_pyarrow()
    counts = to_numpy(columns["count"])
    num_train_users = int(np.count_nonzero(to_numpy(columns["train_count"])))
    rows, values = {}, {}
    for i, text in enumerate(config.user_traits):
        name, bins = parse_user_trait(text)
        texts = columns[f"user_trait_{i}"].to_pylist()
        try:
            rows[name], values[name] = encode_user_trait(texts, num_train_users, bins)
        except ValueError as error:
            raise ValueError(f"--user_traits={text}: {error}; leave out :{bins}") from error
    return {
        "user_offsets": np.concatenate(([0], np.cumsum(counts))),
        "num_train_users": num_train_users,
        "user_ids": Texts(columns["user"].combine_chunks()),
        "user_traits": rows,
        "user_trait_values": values,
    }


def _describe_items(
    counts: ir.Table,
    items: ir.Table,
    categories: ir.Table,
    traits: Mapping[str, str],
    trait_separator: str,
) -> dict[str, Any]:
    """The item columns of a prepared log, each with the unknown item in front.

    Args:
      counts: `vocabulary.count_events`.
      items, categories: of `vocabulary`, numbered.
      traits: column of `counts` -> name of the trait.
      trait_separator: between the values of a trait.
    """
    items = vocabulary.describe_items(counts, items, list(traits))
    items = vocabulary.encode(items, "category", categories, name="categories")
    columns = items.order_by("row").to_pyarrow()
    ids, names = columns["value"].to_pylist(), columns["name"].to_pylist()
    encoded = {
        name: encode_item_trait(
            columns[column].to_pylist(), None if name == DOMAIN else trait_separator
        )
        for column, name in traits.items()
    }

    def after_unknown(value: int, name: str, dtype: type) -> np.ndarray:
        return np.concatenate((np.array([value], dtype), _array(columns, name, dtype)))

    return {
        "item_ids": ["", *ids],
        "item_names": ["", *(name or item_id for name, item_id in zip(names, ids, strict=True))],
        "item_latitudes_e7": after_unknown(UNKNOWN_E7, "latitude_e7", np.int32),
        "item_longitudes_e7": after_unknown(UNKNOWN_E7, "longitude_e7", np.int32),
        "item_categories": after_unknown(0, "categories", np.int32),
        "item_train_counts": after_unknown(0, "train_count", np.int64),
        "item_traits": {name: rows for name, (rows, _) in encoded.items()},
        "item_trait_values": {name: texts for name, (_, texts) in encoded.items()},
    }


def _array(table: pa.Table, name: str, dtype: Any) -> np.ndarray:
    return to_numpy(table[name], dtype)


def _texts(values: ir.Table) -> list[str]:
    return ["", *values.order_by("row").to_pyarrow()["value"].to_pylist()]
