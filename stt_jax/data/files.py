"""Files of a log as such: what an open one offers, their bytes, their text, what goes wrong."""

from __future__ import annotations

import codecs
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

_GZIP_MAGIC = b"\x1f\x8b"
_READ_BYTES = 4 * 2**20
_HEAD_BYTES = 2 * 2**20  # searched for the first line
_COUNT_BYTES = 2**18  # looked at together for line ends: what a processor's cache holds


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How to read files.

    Attributes:
      format: as --format; "auto" goes by the file name, with or without ".gz".
      delimiter: as --delimiter; "auto": the first of tab, comma, semicolon and pipe that
        the first line holds, else a space.
      columns: names of the columns of a file without a header line; empty: the file has one.
      encoding: of text files.
    """

    format: str = "auto"
    delimiter: str = "auto"
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"


@dataclasses.dataclass
class BrokenRows:
    """Rows that could not be split into fields, counted, with the first one for the message.

    Attributes:
      count: how many; a row that a stray quote has made of many lines counts as so many.
      first: the beginning of the first one.
      num_lines: lines with text that they were written on.
      num_inner_lines: lines with text, beyond the first of each row that was read, inside its
        quoted fields. They are text as it is meant, or rows that a stray quote has swallowed.
    """

    count: int = 0
    first: str = ""
    num_lines: int = 0
    num_inner_lines: int = 0

    def add(self, text: str) -> None:
        """Counts one more."""
        self.first = self.first or text[:80]
        self.count += 1 + text.rstrip("\n").count("\n")
        self.num_lines += sum(1 for line in re.split("[\r\n]", text) if line)


@dataclasses.dataclass(frozen=True)
class LogFile:
    """One file, opened far enough to know its columns.

    Attributes:
      path: the file.
      description: the format, for the printed report.
      names: the columns, in file order.
      batches: wanted column positions -> tables of text columns, named by position ("0", "3").
      broken: filled while `batches` is consumed.
    """

    path: pathlib.Path
    description: str
    names: tuple[str, ...]
    batches: Callable[[Sequence[int]], Iterator[pa.Table]]
    broken: BrokenRows


class FileErrors:
    """Turns what the readers raise into one line that names the file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if not isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)):
            return
        text = str(error)
        if "runcated compressed" in text or "inflate" in text or "zlib" in text:
            raise ValueError(
                f"{self.path}: the gzip file is cut off or damaged; fetch or compress it again"
            ) from error
        if "utf8" in text.lower() or isinstance(error, UnicodeDecodeError):
            raise ValueError(
                f"{self.path}: the text is not in the encoding that --encoding names (utf-8 if not "
                "given); --encoding=latin-1 reads any text"
            ) from error
        if isinstance(error, pa.ArrowInvalid):
            raise ValueError(f"{self.path}: {text}") from error


def open_stream(path: pathlib.Path) -> pa.NativeFile:
    """The bytes of a file, decompressed if it is a gzip file."""
    # By content, not by name: gzip files without ".gz" and plain files with it both occur.
    with path.open("rb") as file:
        gzipped = file.read(2) == _GZIP_MAGIC
    return pa.input_stream(str(path), compression="gzip" if gzipped else None)


class CountedLines:
    """The bytes of a stream as they are, with a count of the lines that have text in them.

    Args:
      stream: UTF-8 text.
      skip_lines: lines, empty or not, at its beginning that do not count.

    Attributes:
      num_lines: in what was read so far; the end of the stream ends a line, too.
      closed: whether the stream is; Arrow asks.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile, *, skip_lines: int):
        self.num_lines = 0
        self._stream = stream
        self._skip_lines = skip_lines
        self._after_end = True  # the last byte ended a line, or there was none yet

    def read_buffer(self, num_bytes: int) -> pa.Buffer:
        """The next bytes."""
        block = self._stream.read_buffer(num_bytes)
        data = np.frombuffer(block, np.uint8)
        if self._skip_lines:
            head = re.match(rb"(?:[^\r\n]*(?:\r\n|\r|\n)){%d}" % self._skip_lines, block)
            data, self._skip_lines = data[head.end() if head else len(data) :], 0
        for first in range(0, len(data), _COUNT_BYTES):
            self._count(data[first : first + _COUNT_BYTES])
        return block

    read = read_buffer

    def _count(self, data: np.ndarray) -> None:
        # A line with text begins where a byte that is no line end follows one that is.
        ends = data == ord("\n")
        ends |= data == ord("\r")
        self.num_lines += int(np.count_nonzero(ends[1:] < ends[:-1]))
        self.num_lines += int(self._after_end and not ends[0])
        self._after_end = bool(ends[-1])

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()
        self.closed = True


def first_line(path: pathlib.Path, encoding: str) -> tuple[str, int]:
    """The first line with text in it, and its number from 0."""
    with open_stream(path) as stream:
        head = stream.read(_HEAD_BYTES).decode(encoding, errors="replace")
    lines = re.finditer("(.*?)(?:\r\n|\r|\n|\\Z)", head.removeprefix("\ufeff"), re.DOTALL)
    for number, line in enumerate(lines):
        if line[1].strip():
            return line[1], number
    raise ValueError(f"{path} is empty: it has no line with text")


def text_lines(path: pathlib.Path, encoding: str) -> Iterator[str]:
    """Lines with text in them, without their ends."""
    # Decoded first: in UTF-16 the byte of a line feed may be half of another character.
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, first, block = "", True, b"-"
    with open_stream(path) as stream:
        while block:
            block = stream.read(_READ_BYTES)
            *lines, rest = (rest + decoder.decode(block, final=not block)).split("\n")
            for line in lines if block else [*lines, rest]:
                text = (line.removeprefix("\ufeff") if first else line).strip()
                first = False
                if text:
                    yield text


def text_table(columns: Sequence[Sequence[str | None]], wanted: Sequence[int]) -> pa.Table:
    """Lists of texts as one batch, named by the positions of the columns."""
    return pa.table(
        {
            str(position): pa.array(column, pa.string())
            for position, column in zip(wanted, columns, strict=True)
        }
    )
