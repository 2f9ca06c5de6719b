"""Every known file format -> batches of text columns, in the order of the rows.

Everything leaves here as text or null: numbers are written the shortest way that reads back the
same ("13085.0" in a float column is "13085"), times as ISO 8601. Text of CSV files is left as it
is. Broken rows (a wrong number of fields, a line that is no JSON object) are skipped and counted.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from stt_jax.data.files import (
    BrokenRows,
    CountedLines,
    FileErrors,
    LogFile,
    ReadOptions,
    first_line,
    open_stream,
    text_lines,
    text_table,
)

DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|", "space": " "}

_SUFFIX_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".inter": "recbole",
    ".item": "recbole",
    ".user": "recbole",
}
_RECBOLE_NAME = re.compile(r"^(.+):(token|token_seq|float|float_seq)$")
# A written half of a character beyond 16 bits. Two of them make one; half a one is no text.
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
# A row may not straddle two blocks, so this is also the longest row that can be read.
_BLOCK_BYTES = 32 * 2**20
_ROWS_PER_BATCH = 131_072
_NUM_LINES_FOR_NAMES = 1_000  # JSON objects looked at for the names of the columns


def open_file(path: pathlib.Path, options: ReadOptions) -> LogFile:
    """Opens one file of a log.

    Raises:
      ValueError, OSError: the file is missing, empty, cut off or not of the format; the message
        names the file and what to do.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name its files, separated by commas")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob(f"{path.name[:3]}*"))[:3]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"{path}: no such file{hint}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    file_format = _format_of(path) if options.format == "auto" else options.format
    if options.columns and file_format in ("jsonl", "parquet"):
        raise ValueError(f"{path} names its columns itself ({file_format}); leave out --columns")
    opener = {
        "csv": _open_delimited,
        "recbole": _open_delimited,
        "jsonl": _open_json_lines,
        "parquet": _open_parquet,
        "sequences": _open_sequences,
    }[file_format]
    with FileErrors(path):
        return opener(path, dataclasses.replace(options, format=file_format))


def _format_of(path: pathlib.Path) -> str:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".gzip")]
    return _SUFFIX_FORMATS.get(suffixes[-1] if suffixes else "", "csv")


# --- delimited text: CSV, TSV, RecBole atomic files ---


def _open_delimited(path: pathlib.Path, options: ReadOptions) -> LogFile:
    line, line_number = first_line(path, options.encoding)
    recbole = options.format == "recbole"
    delimiter = _delimiter(line, "tab" if recbole else options.delimiter)
    # Tab-separated files do not quote: in MovieLens titles a quote is just a quote.
    quoting = delimiter != "\t"
    try:
        (fields,) = csv.reader(
            [line], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
        )
    except csv.Error as error:
        raise ValueError(f"{path}: no columns in the first line {line[:80]!r}: {error}") from error
    if options.columns and len(options.columns) != len(fields):
        raise ValueError(
            f"{path} has {len(fields)} columns, {len(options.columns)} names were given "
            f"({','.join(options.columns)}); its first line is {line[:80]!r}"
        )
    names = options.columns or tuple(fields)
    if recbole and not options.columns:
        typed = [_RECBOLE_NAME.match(name) for name in names]
        if not all(typed):
            raise ValueError(
                f"{path} is no RecBole file: its header {line[:80]!r} lacks types such as "
                "user_id:token; give --format=csv"
            )
        names = tuple(match[1] for match in typed if match)
    broken = BrokenRows()
    skip_rows = 0 if options.columns else line_number + 1

    def batches(wanted: Sequence[int]) -> Iterator[pa.Table]:
        with FileErrors(path), open_stream(path) as stream:
            yield from _read_delimited(
                stream,
                wanted,
                num_columns=len(names),
                delimiter=delimiter,
                quoting=quoting,
                skip_rows=skip_rows,
                encoding=options.encoding,
                broken=broken,
            )

    what = "RecBole" if recbole else f"delimited by {_delimiter_name(delimiter)}"
    return LogFile(path, what, names, batches, broken)


def _delimiter(line: str, name: str) -> str:
    if name != "auto":
        return DELIMITERS[name]
    return next((d for d in "\t,;|" if d in line), " ")


def _delimiter_name(delimiter: str) -> str:
    return next(name for name, text in DELIMITERS.items() if text == delimiter)


def _read_delimited(
    stream: pa.NativeFile,
    wanted: Sequence[int],
    *,
    num_columns: int,
    delimiter: str,
    quoting: bool,
    skip_rows: int,
    encoding: str,
    broken: BrokenRows,
) -> Iterator[pa.Table]:
    def skip(row: pyarrow.csv.InvalidRow) -> str:
        broken.add(row.text)
        return "skip"

    # The bytes are decoded first. Else Arrow would hand rows with undecodable ones to `skip`, where
    # they cannot raise.
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    decoded = pa.transcoding_input_stream(stream, encoding, "utf-8")
    lines = CountedLines(decoded, skip_lines=skip_rows)
    num_broken_before = broken.num_lines
    # Columns go by position: header names may be empty or occur twice.
    positions = [str(i) for i in range(num_columns)]
    keep = [str(i) for i in wanted]
    try:
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(lines, mode="r") if quoting else decoded,
            read_options=pyarrow.csv.ReadOptions(
                column_names=positions, skip_rows=skip_rows, block_size=_BLOCK_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoting else False,
                double_quote=quoting,
                newlines_in_values=quoting,
                invalid_row_handler=skip,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=keep, column_types=dict.fromkeys(keep, pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error) or "Could not skip" in str(error):
            return  # a header and nothing after it
        raise
    num_rows = 0
    for batch in reader:
        num_rows += len(batch)
        yield pa.Table.from_batches([batch])
    if quoting:
        num_broken = broken.num_lines - num_broken_before
        broken.num_inner_lines = lines.num_lines - num_rows - num_broken


# --- JSON lines ---


def _open_json_lines(path: pathlib.Path, options: ReadOptions) -> LogFile:
    line, _ = first_line(path, options.encoding)
    if line.lstrip().startswith("["):
        raise ValueError(f"{path} is a JSON array; JSON lines has one object a line")
    names: dict[str, None] = {}
    for number, row in enumerate(_json_objects(path, options.encoding, BrokenRows())):
        names.update(dict.fromkeys(row))
        if number >= _NUM_LINES_FOR_NAMES:
            break
    if not names:
        raise ValueError(f"{path} has no line with a JSON object; it begins {line[:80]!r}")
    broken = BrokenRows()
    keys = tuple(names)

    def batches(wanted: Sequence[int]) -> Iterator[pa.Table]:
        columns: list[list[str | None]] = [[] for _ in wanted]
        with FileErrors(path):
            for row in _json_objects(path, options.encoding, broken):
                for column, position in zip(columns, wanted, strict=True):
                    column.append(_json_text(row.get(keys[position])))
                if len(columns[0]) == _ROWS_PER_BATCH:
                    yield text_table(columns, wanted)
                    columns = [[] for _ in wanted]
            yield text_table(columns, wanted)

    return LogFile(path, "JSON lines", keys, batches, broken)


def _json_objects(path: pathlib.Path, encoding: str, broken: BrokenRows) -> Iterator[dict]:
    # Numbers stay the text they are: 007 cannot occur, and 2**60 must not become a float.
    decoder = json.JSONDecoder(parse_int=str, parse_float=_shortest, parse_constant=_no_number)
    for line in text_lines(path, encoding):
        try:
            row = decoder.decode(line)
            if _HALF_CHARACTER.search(line):
                json.dumps(row, ensure_ascii=False).encode()
        except (json.JSONDecodeError, RecursionError, UnicodeEncodeError):
            row = None  # no JSON, nested deeper than Python goes, or half a character
        if isinstance(row, dict):
            yield row
        else:
            broken.add(line)


def _shortest(number: str) -> str:
    value = float(number)
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else number


def _no_number(_: str) -> None:
    return None


def _json_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False)


# --- sequences: "user item item item ..." ---


def _open_sequences(path: pathlib.Path, options: ReadOptions) -> LogFile:
    first_line(path, options.encoding)
    broken = BrokenRows()

    def batches(wanted: Sequence[int]) -> Iterator[pa.Table]:
        users: list[str | None] = []
        items: list[str | None] = []
        with FileErrors(path):
            for line in text_lines(path, options.encoding):
                user, *rest = line.split()
                if not rest:
                    broken.add(line)
                users += [user] * len(rest)
                items += rest
                if len(users) >= _ROWS_PER_BATCH:
                    yield text_table([users, items], (0, 1)).select([str(i) for i in wanted])
                    users, items = [], []
            yield text_table([users, items], (0, 1)).select([str(i) for i in wanted])

    return LogFile(path, "sequences", options.columns or ("user", "item"), batches, broken)


# --- Parquet ---


def _open_parquet(path: pathlib.Path, options: ReadOptions) -> LogFile:
    import pyarrow.parquet  # slow to import, and most logs are text

    schema = pyarrow.parquet.read_schema(path)
    names = tuple(schema.names)

    def batches(wanted: Sequence[int]) -> Iterator[pa.Table]:
        columns = [names[i] for i in wanted]
        with FileErrors(path), pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns, batch_size=_ROWS_PER_BATCH):
                yield pa.table(
                    {
                        str(i): as_text(batch.column(name), f"{path}: column {name!r}")
                        for i, name in zip(wanted, columns, strict=True)
                    }
                )

    return LogFile(path, "Parquet", names, batches, BrokenRows())


def as_text(values: pa.Array, where: str) -> pa.Array:
    """A column of any plain type as text; NaN is null; `where` begins the error message."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return as_text(values.cast(kind.value_type), where)
    if pa.types.is_nested(kind):
        raise ValueError(f"{where} is nested ({kind}); only plain columns can be used")
    if pa.types.is_float16(kind):
        values, kind = values.cast(pa.float32()), pa.float32()
    if pa.types.is_floating(kind):
        return _float_text(values)
    if pa.types.is_decimal(kind):
        return pc.replace_substring_regex(values.cast(pa.string()), r"\.0+$", "")
    return values.cast(pa.string())


def _float_text(values: pa.Array) -> pa.Array:
    values = pc.if_else(pc.is_finite(values), values, None)
    whole = pc.and_(pc.equal(pc.trunc(values), values), pc.less(pc.abs(values), 2.0**53))
    integers = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(integers, values.cast(pa.string()))
