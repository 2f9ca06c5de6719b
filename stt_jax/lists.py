"""Lists for many requests at once: from a table of them, or everybody, into a table of lists."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import rich.console
import rich.progress

from stt_jax.config import ListsConfig, RequestConfig
from stt_jax.data.files import ReadOptions
from stt_jax.data.formats import open_file
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.ranking import Recommendation
from stt_jax.recommender import BATCH_PEOPLE, Asked, Recommender

EVERYBODY = "all"
_TOLD = ("time", "latitude", "longitude")  # what a row may say besides its user
_SHOWN_REFUSALS = 3
_LINE_EVERY_S = 60.0  # where there is no terminal for a bar
_PIECE = 1 << 16  # rows that are written at a time

# One row a place of a list; `request` is the row of the table of requests, from 1.
SCHEMA = pa.schema(
    [
        ("request", pa.int64()),
        ("user", pa.string()),
        ("rank", pa.int32()),
        ("item", pa.string()),
        ("name", pa.string()),
        ("category", pa.string()),
        ("probability", pa.float64()),
        ("distance_km", pa.float64()),
    ]
)


@dataclasses.dataclass
class Counts:
    """What became of the requests.

    Attributes:
      requests: all of them.
      places: rows that were written.
      shorter: lists with fewer than k items.
      refused: requests without a list, because something is wrong with them.
      refusals: why, of the first ones.
    """

    requests: int = 0
    places: int = 0
    shorter: int = 0
    refused: int = 0
    refusals: list[str] = dataclasses.field(default_factory=list)

    def refuse(self, error: ValueError) -> None:
        """Counts one that gets no list."""
        self.refused += 1
        if len(self.refusals) < _SHOWN_REFUSALS:
            self.refusals.append(f"request {self.requests}: {error}")


def write_lists(
    recommender: Recommender, log: PreparedLog, request: RequestConfig, lists: ListsConfig
) -> Counts:
    """Answers many requests and writes a table of `SCHEMA`.

    A request that is wrong (somebody unknown, a time that cannot be read, no place for a radius)
    gets no list and is counted. The table appears when it is complete, and not before.

    Args:
      recommender: of a run and `log`.
      log: whose people are meant.
      request: the rules, and what rows of the table leave open.
      lists: which requests, and where to.

    Raises:
      ValueError, OSError: the table of requests cannot be read or lacks its column; the output
        cannot be written; or no request at all is right.
    """
    requests: Iterator[RequestConfig | ValueError]
    if lists.requests == EVERYBODY:
        requests, total = _everybody(log, request), log.num_users
    else:
        table = _read_table(pathlib.Path(lists.requests))
        requests, total = _requests(table, request), len(table)
    counts = Counts()
    said_s = time.monotonic()
    with _Writer(pathlib.Path(lists.output)) as writer, _progress() as progress:
        task = progress.add_task("recommending", total=total)
        for rows in _batches(_asked(recommender, requests, counts)):
            answers = recommender.answer([asked for _, _, asked in rows])
            for (number, user, asked), answer in zip(rows, answers, strict=True):
                writer.add(number, user, answer)
                counts.places += len(answer)
                counts.shorter += len(answer) < asked.rules.k
            progress.update(task, completed=counts.requests)
            if progress.disable and time.monotonic() - said_s > _LINE_EVERY_S:
                said_s = time.monotonic()
                print(f"{counts.requests:,} of {total:,} requests", file=sys.stderr, flush=True)
        if counts.refused == counts.requests:
            raise ValueError(f"--requests={lists.requests}: no list was made; {counts.refusals[0]}")
    return counts


def _everybody(log: PreparedLog, request: RequestConfig) -> Iterator[RequestConfig]:
    for user in log.user_ids:  # as the log holds them: pseudonyms need no key here
        yield dataclasses.replace(request, user=user, key_file="")


def _read_table(path: pathlib.Path) -> pa.Table:
    """The columns of a table of requests that mean something, as text.

    Raises:
      ValueError, OSError: it cannot be read whole, has no rows, or no column `user`.
    """
    file = open_file(path, ReadOptions())
    if "user" not in file.names:
        raise ValueError(
            f"--requests={path} has no column 'user'; its columns are {', '.join(file.names)}"
        )
    names = [name for name in ("user", *_TOLD) if name in file.names]
    wanted = [file.names.index(name) for name in names]
    tables = [table.select([str(at) for at in wanted]) for table in file.batches(wanted)]
    if file.broken.count:
        raise ValueError(
            f"--requests={path}: {file.broken.count} rows do not have its {len(file.names)} "
            f"columns, the first is {file.broken.first!r}; mend them, or leave them out"
        )
    if not sum(map(len, tables)):
        raise ValueError(f"--requests={path} has no rows; write one request a row")
    return pa.concat_tables(tables).rename_columns(names)


def _requests(table: pa.Table, request: RequestConfig) -> Iterator[RequestConfig | ValueError]:
    """One request a row; an empty field is as in `request`."""
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            told = {name: text.strip() for name, text in row.items() if text and text.strip()}
            try:
                yield dataclasses.replace(request, **told)
            except ValueError as error:
                yield error


def _asked(
    recommender: Recommender, requests: Iterable[RequestConfig | ValueError], counts: Counts
) -> Iterator[tuple[int, str, Asked]]:
    """(number, user, what is asked) of the requests that are right; the others are counted."""
    for request in requests:
        counts.requests += 1
        try:
            if isinstance(request, ValueError):
                raise request
            yield counts.requests, request.user, recommender.ask(request)
        except ValueError as error:
            counts.refuse(error)


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_PEOPLE:
            yield batch
            batch = []
    if batch:
        yield batch


class _Writer:
    """A table beside its place, put there when it is complete."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._aside = path.with_name(path.name + ".unfinished")

    def __enter__(self) -> _Writer:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.suffix == ".parquet":
                self._writer: Any = pyarrow.parquet.ParquetWriter(self._aside, SCHEMA)
            else:
                self._writer = pyarrow.csv.CSVWriter(self._aside, SCHEMA)
        except OSError as error:
            raise ValueError(f"--output={self._path} cannot be written: {error}") from error
        self._rows: list[dict[str, Any]] = []
        return self

    def add(self, number: int, user: str, answer: list[Recommendation]) -> None:
        for rank, one in enumerate(answer, start=1):
            values = (number, user, rank, one.item_id, one.name, one.category,
                      one.probability, one.distance_km)  # fmt: skip
            self._rows.append(dict(zip(SCHEMA.names, values, strict=True)))
        if len(self._rows) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._aside.replace(self._path)
        finally:
            self._aside.unlink(missing_ok=True)


def _progress() -> rich.progress.Progress:
    console = rich.console.Console(stderr=True, markup=False)
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f} requests"),
        rich.progress.BarColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=True,
    )
