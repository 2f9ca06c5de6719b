"""Files of a log -> one Ibis table of text columns with a running row number.

Rows are numbered over all files in the order train, validation, test and, within a part, as the
flags name them. That number (`source_row`) breaks every tie later on, so the result never depends
on how the engine happens to order rows.
"""

from __future__ import annotations

import bisect
import concurrent.futures
import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data.arrays import to_arrow
from stt_jax.data.clean import condition_column
from stt_jax.data.engine import Engine
from stt_jax.data.files import LogFile, ReadOptions
from stt_jax.data.formats import open_file
from stt_jax.data.schema import PART_NAMES, ROLE_FLAGS, TEST, TRAIN, VALIDATION, StepCount
from stt_jax.data.traits import parse_user_trait

# (table, columns: name in the files -> name in the table) -> table
SelectColumns = Callable[..., ir.Table]
_WITH_ARTICLE = {"item": "an item", "user": "a user"}
_JOINED = {"items": "item", "users": "user"}  # flag of a table -> flag of the id that it is of


@dataclasses.dataclass(frozen=True)
class RawLog:
    """The rows that were read.

    Attributes:
      table: columns source_row (int64, from 0), part (int8), and text columns c0, c1, ... An engine
        ignores the case of column names, files do not, so the file's own names are not used.
      columns: name in the files -> name in `table`. A name that only the table of items or that of
        people has is there too: they are joined on.
      first_rows: source row of the first row of each file, ascending.
      files: the file of each entry of `first_rows`.
      counts: what reading and joining did to the rows.
      num_rows: rows of `table`.
      is_selected: `table` has the columns that `select` of `read_log` gave, instead of those.
    """

    table: ir.Table
    columns: dict[str, str]
    first_rows: tuple[int, ...]
    files: tuple[LogFile, ...]
    counts: tuple[StepCount, ...]
    num_rows: int
    is_selected: bool

    def where(self, source_row: int) -> str:
        """The file and the row in it (from 1, without the header) of a source row."""
        file, row = self._find(source_row)
        return f"{file.path} row {row + 1}"

    def show(self, source_row: int, name: str) -> str:
        """`where`, and the text of a column there, for which the file is read once more."""
        file, row = self._find(source_row)
        if name in file.names:
            for batch in file.batches([file.names.index(name)]):
                if row < len(batch):
                    return f"{self.where(source_row)} {batch.column(0)[row].as_py()!r}"
                row -= len(batch)
        return self.where(source_row)

    def _find(self, source_row: int) -> tuple[LogFile, int]:
        file = bisect.bisect_right(self.first_rows, source_row) - 1
        return self.files[file], source_row - self.first_rows[file]


def read_log(config: PrepareConfig, engine: Engine, select: SelectColumns | None = None) -> RawLog:
    """Reads the files that `config` names into `engine`.

    Args:
      config: everything about the preparation.
      engine: to read into.
      select: what the steps need of a row. Where nothing comes before it (tables that are joined,
        rows that are dropped by flag), rows come to that in the engine as they are read: what the
        files have besides is not stored. None keeps all columns that a flag names.

    Raises:
      ValueError, OSError: a file is missing, empty, damaged, not of its format, or has no column
        of a name that a flag gives; the message names the file and the flag.
    """
    root = pathlib.Path(config.data_root)
    options = _read_options(config)
    inputs = (
        (TRAIN, config.input),
        (VALIDATION, config.validation_input),
        (TEST, config.test_input),
    )
    files = [(open_file(root / path, options), part) for part, paths in inputs for path in paths]
    tables = {
        flag: open_file(
            root / getattr(config, flag),
            ReadOptions(columns=getattr(config, f"{flag}_columns"), encoding=config.encoding),
        )
        for flag in _JOINED
        if getattr(config, flag)
    }
    names, names_of = _wanted_columns(config, [file for file, _ in files], tables)
    at_once = not (tables or config.drop_if or config.drop_missing)
    raw = _load_files(files, names, config, engine, select if at_once else None)
    for flag, table in tables.items():
        raw = _join_table(raw, flag, table, names_of[flag], config, engine)
    return raw


def _read_options(config: PrepareConfig) -> ReadOptions:
    columns = config.columns
    if config.format == "sequences":
        columns = (config.user, config.item)
    return ReadOptions(config.format, config.delimiter, columns, config.encoding)


def _wanted_columns(
    config: PrepareConfig, files: Sequence[LogFile], tables: Mapping[str, LogFile]
) -> tuple[list[str], dict[str, list[str]]]:
    """Columns to read from the log and, by flag, from each table (its key first)."""
    wanted: dict[str, str] = {}  # name -> the flag that asks for it
    for flag in ROLE_FLAGS.values():
        if name := getattr(config, flag):
            wanted.setdefault(name, flag)
    wanted |= {name: "context" for name in config.context if name not in wanted}
    wanted |= {name: "numeric" for name in config.numeric if name not in wanted}
    wanted |= {name: "item_traits" for name in config.item_traits if name not in wanted}
    for text in config.user_traits:
        wanted.setdefault(parse_user_trait(text)[0], "user_traits")
    wanted |= {name: "drop_missing" for name in config.drop_missing if name not in wanted}
    for text in config.drop_if:
        wanted.setdefault(condition_column(text), "drop_if")
    if not config.time and not config.untimed and config.format != "sequences":
        raise ValueError(
            "--time is missing: name the column with the time of the event, or give --untimed; "
            f"columns of {files[0].path}: {', '.join(files[0].names)}"
        )

    names_of = {flag: [_table_key(config, flag, table)] for flag, table in tables.items()}
    names: list[str] = []
    for name, flag in wanted.items():
        # A trait of a person comes from their own table first, all else from that of the items.
        order = list(tables)[::-1] if flag == "user_traits" else list(tables)
        holder = next((table for table in order if name in tables[table].names), None)
        if holder and flag not in ("user", "item") and name not in files[0].names:
            names_of[holder].append(name)
            continue
        for file in files:
            _require_column(file, name, flag, list(tables.values()))
        names.append(name)
    return names, names_of


def _table_key(config: PrepareConfig, flag: str, table: LogFile) -> str:
    key, own = getattr(config, f"{flag}_key"), getattr(config, _JOINED[flag])
    if key:
        _require_column(table, key, f"{flag}_key", [])
        return key
    if own not in table.names:
        raise ValueError(
            f"--{flag}_key is missing: {table.path} has no column {own!r}; its columns "
            f"are {', '.join(table.names)}"
        )
    return own


def _require_column(file: LogFile, name: str, flag: str, tables: Sequence[LogFile]) -> None:
    found = file.names.count(name)
    if found == 1:
        return
    if found > 1:
        raise ValueError(f"--{flag}={name}: {file.path} has {found} columns of that name")
    names = [*file.names, *(other for table in tables for other in table.names)]
    lower = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    hint = f" did you mean {lower[near[0]]!r}?" if near else ""
    also = "".join(f" nor has {table.path}" for table in tables)
    raise ValueError(
        f"--{flag}={name}: {file.path} has no such column{also};{hint} "
        f"Columns: {', '.join(names)}. A file without a header line needs --columns"
    )


def _load_files(
    files: Sequence[tuple[LogFile, int]],
    names: Sequence[str],
    config: PrepareConfig,
    engine: Engine,
    select: SelectColumns | None,
) -> RawLog:
    aliases = [f"c{i}" for i in range(len(names))]
    columns = dict(zip(names, aliases, strict=True))
    schema = pa.schema(
        [
            ("source_row", pa.int64()),
            ("part", pa.int8()),
            *((alias, pa.string()) for alias in aliases),
        ]
    )
    num_rows = 0
    first_rows: list[int] = []
    counts: list[StepCount] = []

    def numbered() -> Iterator[pa.Table]:
        nonlocal num_rows
        for file, part in files:
            first_rows.append(num_rows)
            for batch in file.batches([file.names.index(name) for name in names]):
                rows = np.arange(num_rows, num_rows + len(batch), dtype=np.int64)
                parts = np.full(len(batch), part, np.int8)
                yield pa.Table.from_arrays(
                    [to_arrow(rows), to_arrow(parts), *batch.columns], schema=schema
                )
                num_rows += len(batch)
            counts.append(_count_read(file, part, num_rows - first_rows[-1], config))

    chosen = None if select is None else functools.partial(select, columns=columns)
    table = engine.insert("log", schema, _ahead(numbered()), chosen)
    if num_rows == 0:
        raise ValueError(f"{files[0][0].path} has no rows")
    return RawLog(
        table=table,
        columns=columns,
        first_rows=tuple(first_rows),
        files=tuple(file for file, _ in files),
        counts=tuple(counts),
        num_rows=num_rows,
        is_selected=select is not None,
    )


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, the next one being read while the engine takes this one."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    coming = pool.submit(next, tables, None)

    def rest(coming: concurrent.futures.Future) -> Iterator[pa.Table]:
        with pool:
            while (table := coming.result()) is not None:
                coming = pool.submit(next, tables, None)
                yield table

    return rest(coming)


def _count_read(file: LogFile, part: int, num_rows: int, config: PrepareConfig) -> StepCount:
    broken = file.broken.count
    if broken and config.strict:
        raise ValueError(
            f"{file.path}: a row that cannot be read (--strict): {file.broken.first!r}"
        )
    if broken > config.max_broken_fraction * (num_rows + broken):
        raise ValueError(
            f"{file.path}: {broken} of {num_rows + broken} rows cannot be read as "
            f"{file.description} with {len(file.names)} columns; first: {file.broken.first!r}. "
            "Check --format, --delimiter and --columns"
        )
    inner, num_lines = file.broken.num_inner_lines, num_rows + file.broken.num_inner_lines
    if inner > (0 if config.strict else config.max_broken_fraction * num_lines):
        remedy = "leave out --strict" if config.strict else "give a larger --max_broken_fraction"
        raise ValueError(
            f"{file.path}: {inner} of {num_lines} lines are inside quoted fields that span lines, "
            "maybe rows that a stray quote has swallowed. Mend it, or if the fields are meant so, "
            + remedy
        )
    dropped = {"cannot be split into its columns": broken} if broken else {}
    changed = {"lines inside quoted fields": inner} if inner else {}
    part_name = f" as {PART_NAMES[part]}" if config.split == "given" else ""
    name = f"read {file.path.name} ({file.description}){part_name}"
    return StepCount(name, num_rows + broken, num_rows, dropped, changed)


def _join_table(
    raw: RawLog,
    flag: str,
    file: LogFile,
    names: Sequence[str],
    config: PrepareConfig,
    engine: Engine,
) -> RawLog:
    """Adds the columns `names[1:]` of the table of a flag, looked up by `names[0]`.

    With --domain, an item is looked up by domain and id where its table says the domain, too: each
    domain has items of its own.
    """
    what = _JOINED[flag]
    names, num_keys = list(names), 1
    if what == "item" and config.domain in raw.columns and config.domain in file.names:
        _require_column(file, config.domain, "domain", [])
        names.insert(1, config.domain)
        num_keys = 2
    aliases = [f"{what}{i}" for i in range(len(names))]
    keys = aliases[:num_keys]
    tables = [
        table.rename_columns(aliases)
        for table in file.batches([file.names.index(name) for name in names])
    ]
    if not sum(map(len, tables)):  # of a header alone there is not even an empty table
        raise ValueError(f"--{flag}={file.path} has no rows")
    rows = pa.concat_tables(tables)
    with_id = rows.filter(pc.field(keys[0]) != "")
    num_repeated = len(with_id) - with_id.group_by(keys).aggregate([]).num_rows
    rows = rows.append_column("row", to_arrow(np.arange(len(rows), dtype=np.int64)))
    table = engine.insert(f"{flag}_table", rows.schema, [rows])
    # The first row of an id counts; a join on several would multiply events.
    table = table.filter(table[aliases[0]] != "").mutate(
        place=ibis.row_number().over(group_by=keys, order_by="row")
    )
    table = table.filter(table.place == 0).drop("place", "row")
    columns = [raw.columns[name] for name in (getattr(config, what), config.domain)[:num_keys]]
    same = [raw.table[column] == table[key] for column, key in zip(columns, keys, strict=True)]
    joined = raw.table.left_join(table, same)
    joined = engine.store(f"log_{flag}", joined)
    engine.drop(raw.table.get_name())
    num_rows = joined.count().to_pyarrow().as_py()
    num_absent = joined[aliases[0]].isnull().sum().to_pyarrow().as_py()
    if num_absent > config.max_broken_fraction * num_rows:
        raise ValueError(
            f"--{flag}={file.path}: {num_absent} of {num_rows} events have "
            f"{_WITH_ARTICLE[what]} that its column {names[0]!r} lacks; name the column with the "
            f"{what} id by --{flag}_key"
        )
    counted = {
        f"{what} without a row there": num_absent,
        f"rows of {_WITH_ARTICLE[what]} that has one already": num_repeated,
        f"rows without {_WITH_ARTICLE[what]}": len(rows) - len(with_id),
        "rows that cannot be split into their columns": file.broken.count,
        "lines inside quoted fields": file.broken.num_inner_lines,
    }
    changed = {reason: number for reason, number in counted.items() if number}
    count = StepCount(f"join {file.path.name} ({len(rows)} rows)", num_rows, num_rows, {}, changed)
    return dataclasses.replace(
        raw,
        table=joined,
        columns=raw.columns | dict(zip(names[num_keys:], aliases[num_keys:], strict=True)),
        counts=(*raw.counts, count),
    )
