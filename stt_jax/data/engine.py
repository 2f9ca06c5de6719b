"""The table engine: DuckDB inside this process, or a Spark cluster. The steps do not know which.

A step is an Ibis expression over a total order, and both engines agree on its value to the bit.
What they do not share stands here: how tables come in, are kept between two steps and go out, and
the two functions that Ibis has no common name for.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ibis
import pyarrow as pa
from ibis.expr import datatypes as dt
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig

# What a strptime pattern can hold -> the same for Java's DateTimeFormatter, which Spark uses. One
# letter reads one or two digits, as strptime does.
_JAVA_PATTERNS = {
    "Y": "yyyy", "y": "yy", "m": "M", "d": "d", "H": "H", "I": "h", "M": "m", "S": "s",
    "f": "SSSSSS", "p": "a", "b": "MMM", "B": "MMMM", "j": "D", "z": "xx", "%": "%",
}  # fmt: skip
Select = Callable[[ir.Table], ir.Table]
_PIECE_ROWS = 32_768


@ibis.udf.scalar.builtin(name="try_strptime")
def _duckdb_strptime(text: dt.string, pattern: dt.string) -> dt.timestamp:
    """DuckDB's strptime that gives null for text that does not follow the pattern."""


@ibis.udf.scalar.builtin(name="try_to_timestamp")
def _spark_strptime(text: dt.string, pattern: dt.string) -> dt.timestamp:
    """The same of Spark."""


@ibis.udf.scalar.builtin(name="epoch_us")
def _duckdb_micros(moment: dt.timestamp) -> dt.int64:
    """Microseconds since 1970."""


@ibis.udf.scalar.builtin(name="unix_micros")
def _spark_micros(moment: dt.timestamp) -> dt.int64:
    """The same of Spark."""


class DuckEngine:
    """DuckDB in this process; larger than memory by spilling to `folder`.

    Args:
      folder: for what does not fit into memory.
      threads: 0 takes all cores.
      memory_gb: spills beyond it; 0 takes DuckDB's default.
    """

    name = "duckdb"

    def __init__(
        self,
        folder: str,
        *,
        threads: int = 0,
        memory_gb: float = 0.0,
    ):
        # Every step has an order of its own; keeping that of the rows only costs memory.
        self._settings: dict[str, Any] = {
            "temp_directory": folder,
            "preserve_insertion_order": False,
        }
        if threads:
            self._settings["threads"] = threads
        if memory_gb:
            self._settings["memory_limit"] = f"{memory_gb}GB"

    @functools.cached_property
    def connection(self) -> Any:
        """Ibis's backend, begun when it is first asked for: files are read meanwhile."""
        connection = ibis.duckdb.connect(**self._settings)
        # Ibis's own imports pandas, which takes longer than preparing a small log.
        connection.to_pyarrow = self._to_pyarrow
        return connection

    def insert(
        self,
        name: str,
        schema: pa.Schema,
        tables: Iterable[pa.Table],
        select: Select | None = None,
    ) -> ir.Table:
        """A new table out of Arrow tables of one schema.

        Args:
          name: of the table.
          schema: of `tables`.
          tables: rows, some at a time.
          select: what is kept of each row, worked out as it comes; None = all of it.
        """
        database, to_text = self.connection.con, self.connection.compiler.type_mapper.to_string
        query = ""
        for table in itertools.chain([pa.Table.from_batches([], schema)], tables):
            # In pieces, each of which one thread takes.
            pieces = table.to_batches(max_chunksize=_PIECE_ROWS)
            database.register("incoming", pa.Table.from_batches(pieces, schema))
            if not query:
                incoming = self.connection.table("incoming")
                kept = incoming if select is None else select(incoming)
                columns = [f'"{one}" {to_text(kind)}' for one, kind in kept.schema().items()]
                database.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
                query = f'INSERT INTO "{name}" {self.connection.compile(kept)}'
            database.execute(query)
            database.unregister("incoming")
        return self.connection.table(name)

    def store(self, name: str, expression: ir.Table) -> ir.Table:
        """Computes a table once."""
        # Ibis's own create_table asks the database for much before and after.
        self.connection.con.execute(f'CREATE TABLE "{name}" AS {self._typed(expression)}')
        return self.connection.table(name)

    def view(self, name: str, expression: ir.Table) -> ir.Table:
        """A name for a table that is worked out anew wherever it is looked at.

        Ibis takes the longer to write a query the more steps are between it and its tables.
        """
        self.connection.con.execute(f'CREATE VIEW "{name}" AS {self._typed(expression)}')
        return self.connection.table(name)

    def _typed(self, expression: ir.Table) -> str:
        """The query of a table, its columns of the types that Ibis takes them for."""
        to_text = self.connection.compiler.type_mapper.to_string
        columns = [
            f'CAST("{one}" AS {to_text(kind)}) AS "{one}"'
            for one, kind in expression.schema().items()
        ]
        return f"SELECT {', '.join(columns)} FROM ({self.connection.compile(expression)})"

    def drop(self, name: str) -> None:
        """Frees a table that `insert` or `store` made."""
        # Ibis's drop_table leaves out the name with some versions of its SQL writer.
        self.connection.raw_sql(f"DROP TABLE {name}")

    def fetch(self, expression: ir.Table) -> pa.Table:
        """The rows of a table, in its order."""
        return self._to_pyarrow(expression)

    def stream(self, expression: ir.Table) -> Iterator[pa.Table]:
        """The rows of a table, in its order, some at a time; no other query may run meanwhile."""
        schema = expression.schema().to_pyarrow()
        for batch in self._read(expression):
            yield pa.Table.from_batches([batch]).cast(schema)

    def _read(self, expression: ir.Table) -> pa.RecordBatchReader:
        relation = self.connection.con.sql(self.connection.compile(expression))
        return pa.RecordBatchReader.from_stream(relation)

    def _to_pyarrow(self, expression: ir.Expr, **_: Any) -> Any:
        table = expression.as_table()
        rows = self._read(table).read_all()
        return expression.__pyarrow_result__(rows.cast(table.schema().to_pyarrow()))

    def parse_time(self, text: ir.StringValue, pattern: str) -> ir.TimestampValue:
        """Text by a strptime pattern; null where it does not follow it."""
        return _duckdb_strptime(text, pattern)

    def to_micros(self, moment: ir.TimestampValue) -> ir.IntegerValue:
        """Microseconds since 1970."""
        return _duckdb_micros(moment)

    def close(self) -> None:
        """Lets go of everything."""
        if "connection" in self.__dict__:
            self.connection.disconnect()


class SparkEngine:
    """Spark, local or a cluster.

    Args:
      folder: tables live here as Parquet between two steps; every machine of the cluster must see
        it under the same path.
      master: as spark.master: "local[2]", "spark://host:7077", "yarn".

    Raises:
      ValueError: pyspark or Java is not here, or the master does not answer.
    """

    name = "spark"

    def __init__(self, folder: str, master: str):
        try:
            with warnings.catch_warnings():
                # PySpark warns of each pandas that is newer than itself.
                warnings.simplefilter("ignore", FutureWarning)
                import pyspark.errors
                import pyspark.sql
        except ImportError as error:
            raise ValueError(
                f"--engine=spark needs more packages ({error}); pip install 'stt_jax[spark]'"
            ) from error
        self._folder = pathlib.Path(folder)
        self._session_is_ours = pyspark.sql.SparkSession.getActiveSession() is None
        options = {
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.sql.warehouse.dir": str(self._folder / "warehouse"),
            "spark.sql.session.timeZone": "UTC",
        }
        if master.startswith("local"):
            # A local shuffle into the 200 parts that suit a cluster is mostly waiting.
            options["spark.sql.shuffle.partitions"] = str(os.cpu_count() or 1)
            options["spark.driver.host"] = "localhost"
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            os.environ.setdefault("SPARK_CONF_DIR", str(_quiet_logging(self._folder)))
        builder = pyspark.sql.SparkSession.builder.master(master).appName("stt_jax.prepare")
        for key, value in options.items():
            builder = builder.config(key, value)
        try:
            self._session = builder.getOrCreate()
        except (pyspark.errors.PySparkException, RuntimeError, OSError) as error:
            raise ValueError(
                f"--engine=spark --spark_master={master}: Spark does not start "
                f"({str(error).splitlines()[0]}); it needs Java 17 or later on the PATH"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.connection = ibis.pyspark.connect(self._session)
        # Ibis's own goes by way of pandas, which has no integers that may be missing.
        self.connection.to_pyarrow = self._to_pyarrow

    def insert(
        self,
        name: str,
        schema: pa.Schema,
        tables: Iterable[pa.Table],
        select: Select | None = None,
    ) -> ir.Table:
        """A new table out of Arrow tables of one schema; see `DuckEngine.insert`."""
        import pyarrow.parquet

        if select is not None:
            chosen = self.store(name, select(self.insert("incoming", schema, tables)))
            self.drop("incoming")
            return chosen
        path = self._folder / name
        path.mkdir()
        with pyarrow.parquet.ParquetWriter(path / "rows.parquet", schema) as writer:
            for table in tables:
                writer.write_table(table)
        return self._open(name)

    def store(self, name: str, expression: ir.Table) -> ir.Table:
        """Computes a table once."""
        self._session.sql(self.connection.compile(expression)).write.parquet(
            f"{(self._folder / name).absolute().as_uri()}"
        )
        return self._open(name)

    def view(self, name: str, expression: ir.Table) -> ir.Table:
        """A name for a table that is worked out anew wherever it is looked at."""
        rows = self._session.sql(self.connection.compile(expression))
        rows.createOrReplaceTempView(name)
        return self.connection.table(name)

    def _open(self, name: str) -> ir.Table:
        uri = (self._folder / name).absolute().as_uri()
        self._session.read.parquet(uri).createOrReplaceTempView(name)
        return self.connection.table(name)

    def drop(self, name: str) -> None:
        """Frees a table that `insert` or `store` made."""
        self._session.catalog.dropTempView(name)
        shutil.rmtree(self._folder / name)

    def fetch(self, expression: ir.Table) -> pa.Table:
        """The rows of a table, in its order."""
        return self.connection.to_pyarrow(expression)

    def stream(self, expression: ir.Table) -> Iterator[pa.Table]:
        """The rows of a table, in its order, some at a time."""
        import pyarrow.parquet

        self.store("streamed", expression)
        schema = expression.schema().to_pyarrow()
        # Spark numbers the files of a sorted table in its order.
        for path in sorted((self._folder / "streamed").glob("part-*.parquet")):
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        self.drop("streamed")

    def _to_pyarrow(self, expression: ir.Expr, **_: Any) -> Any:
        table = expression.as_table()
        rows = self._session.sql(self.connection.compile(table)).toArrow()
        schema = table.schema().to_pyarrow()
        return expression.__pyarrow_result__(rows.select(schema.names).cast(schema))

    def parse_time(self, text: ir.StringValue, pattern: str) -> ir.TimestampValue:
        """Text by a strptime pattern; null where it does not follow it."""
        if pattern.startswith("%a "):  # Spark writes names of weekdays, but does not read them
            text, pattern = text.re_replace("^(Mon|Tue|Wed|Thu|Fri|Sat|Sun) ", ""), pattern[3:]
        return _spark_strptime(text, _java_pattern(pattern))

    def to_micros(self, moment: ir.TimestampValue) -> ir.IntegerValue:
        """Microseconds since 1970."""
        return _spark_micros(moment)

    def close(self) -> None:
        """Lets go of everything."""
        if self._session_is_ours:
            self._session.stop()


Engine = DuckEngine | SparkEngine


def open_engine(config: PrepareConfig, folder: str) -> Engine:
    """The engine that `config` names, its tables in `folder` where memory does not suffice."""
    if config.engine == "spark":
        return SparkEngine(folder, config.spark_master)
    return DuckEngine(folder, threads=config.threads, memory_gb=config.memory_gb)


def _java_pattern(pattern: str) -> str:
    parts: list[str] = []
    letters = iter(pattern)
    for letter in letters:
        if letter != "%":
            parts.append(f"'{letter}'" if letter.isalpha() else letter)
            continue
        directive = next(letters, "")
        if directive not in _JAVA_PATTERNS:
            raise ValueError(
                f"--time_format={pattern}: %{directive} is not known to --engine=spark; "
                "use --engine=duckdb"
            )
        parts.append(_JAVA_PATTERNS[directive])
    return "".join(parts)


def _quiet_logging(folder: pathlib.Path) -> pathlib.Path:
    """A folder of Spark settings that keep its news off the terminal."""
    settings = folder / "conf"
    settings.mkdir(exist_ok=True)
    text = """
rootLogger.level = error
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %p %c: %m%n
"""
    (settings / "log4j2.properties").write_text(text, encoding="utf-8")
    return settings


def error_types(engine: Engine) -> tuple[type[BaseException], ...]:
    """What the engine raises when memory or disk runs out."""
    if engine.name == "spark":
        import py4j.protocol
        import pyspark.errors

        return (pyspark.errors.PySparkException, py4j.protocol.Py4JError)
    import duckdb

    return (duckdb.OutOfMemoryException, duckdb.IOException)
