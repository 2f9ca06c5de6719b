"""Options of a raw log: which files hold it, how they are written, which column is what."""

from __future__ import annotations

import codecs
import dataclasses

from stt_jax.config.options import check, check_choices, check_limit, option

TRAIT_SEPARATORS = {"pipe": "|", "comma": ",", "semicolon": ";", "space": " "}
DOMAIN = "domain"  # the trait of items that holds what --domain says


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """Which files hold the log, how they are written, and where the result goes."""

    input: tuple[str, ...] = option(
        (), "Files of the log, comma separated; with --split=given those of the training part."
    )
    validation_input: tuple[str, ...] = option(
        (), "With --split=given: files of the validation part."
    )
    test_input: tuple[str, ...] = option((), "With --split=given: files of the test part.")
    layout: str = option(
        "",
        "Known shape of the log: sets the options about columns that are not given; generic finds "
        "the columns by their usual names.",
        choices=(
            "",
            "foursquare_tsmc2014",
            "gowalla_snap",
            "getnext",
            "movielens",
            "recbole",
            "online_retail",
            "globo",
            "generic",
        ),
    )
    items: str = option(
        "", "Optional table of items (name, category, traits, place), joined by item id."
    )
    users: str = option("", "Optional table of people (traits), joined by user id.")
    data_root: str = option(".", "Folder that relative input paths start from.")
    format: str = option(
        "auto",
        "Format of the log files, plain or gzip; auto goes by the file name. sequences: lines "
        "'user item item ...' in time order.",
        choices=("auto", "csv", "jsonl", "parquet", "recbole", "sequences"),
    )
    delimiter: str = option(
        "auto",
        "Between the fields of csv files; auto takes the first of tab, comma, semicolon, pipe "
        "that the first line holds.",
        choices=("auto", "comma", "tab", "semicolon", "pipe", "space"),
    )
    columns: tuple[str, ...] = option(
        (), "Names for the columns of log files without a header line, e.g. user,item,time."
    )
    items_columns: tuple[str, ...] = option((), "The same for the --items table.")
    users_columns: tuple[str, ...] = option((), "The same for the --users table.")
    encoding: str = option("utf-8", "Encoding of text files, e.g. latin-1.")
    output: str = option("", "Folder for the prepared log; made if missing.")
    write_recbole: bool = option(
        False, "Also write RecBole atomic files with this split, into OUTPUT/recbole."
    )
    overwrite: bool = option(False, "Replace a prepared log that --output already holds.")
    threads: int = option(0, "Threads of the duckdb engine; 0 takes all cores.")
    memory_gb: float = option(
        0.0,
        "Memory of the duckdb engine before it spills to disk, GB; 0: four fifths of all.",
    )
    engine: str = option(
        "duckdb",
        "Table engine: duckdb in this process, or Spark (pip install 'stt_jax[spark]', Java 17). "
        "Both write the same bytes.",
        choices=("duckdb", "spark"),
    )
    spark_master: str = option(
        "local[2]",
        "engine=spark: the master, e.g. local[2] or spark://host:7077. Tables between two steps "
        "lie in the folder that TMPDIR names, which a cluster must share.",
    )

    def __post_init__(self) -> None:
        """Refuses a missing input or output."""
        check_choices(self)
        example = "e.g. --input=log.csv.gz --output=prepared/"
        check(bool(self.input), f"--input is missing: name the files of the log, {example}")
        check(bool(self.output), f"--output is missing: name a folder, {example}")
        check_limit(self, "threads", 1024)
        check_limit(self, "memory_gb", 1e6)
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(
                f"--encoding={self.encoding} is not known; e.g. utf-8, latin-1, cp1252"
            ) from error


@dataclasses.dataclass(frozen=True)
class ColumnOptions:
    """Which column is what. A column may come from the log, the --items or the --users table."""

    user: str = option("user_id", "Column with the user's id.")
    item: str = option("item_id", "Column with the item's id (place, product, article).")
    time: str = option("", "Column with the time of the event.")
    untimed: bool = option(False, "The log has no times: events are in the order of the rows.")
    latitude: str = option("", "Column with the latitude of the event's place, degrees.")
    longitude: str = option("", "Column with the longitude of the event's place, degrees.")
    category: str = option("", "Column with the category of the item.")
    name: str = option("", "Column with the name of the item, for people to read.")
    domain: str = option(
        "",
        "Column with the domain of the item, e.g. shops, places or news in one log: every domain "
        "has items of its own, whose ids become DOMAIN/ITEM, and requests can name domains. Its "
        "name has no slash.",
    )
    item_traits: tuple[str, ...] = option(
        (),
        "Further categorical columns of the item, e.g. genres,brand; an item may have several "
        "values in one.",
    )
    trait_separator: str = option(
        "pipe",
        "Between the values of --item_traits.",
        choices=tuple(TRAIT_SEPARATORS),
    )
    user_traits: tuple[str, ...] = option(
        (),
        "Categorical columns of the person, e.g. gender,occupation,age:8, the last one numbers in "
        "8 ranges between quantiles.",
    )
    context: tuple[str, ...] = option(
        (), "Further categorical columns of the event, e.g. device,country."
    )
    numeric: tuple[str, ...] = option(
        (),
        "Numeric columns of the event, e.g. price,quantity; what is no number is unknown. The "
        "model reads them.",
    )
    session: str = option("", "Column with the log's own session or trajectory id.")
    session_gap_h: float = option(
        0.0, "Instead of --session: a pause of more than so many hours begins a new one."
    )
    items_key: str = option(
        "",
        "Column of --items with the item id; empty: named as --item. With --domain, an item is "
        "found by its domain and id where --items has that column.",
    )
    users_key: str = option("", "Column of --users with the user id; empty: named as --user.")
    time_format: str = option(
        "",
        "How times are written: seconds, milliseconds, microseconds, iso or a pattern such as "
        "'%d/%m/%Y %H:%M'; empty: found from the data and printed.",
    )
    utc_offset_column: str = option(
        "", "Column with the offset of local time from UTC, minutes, e.g. -300 in New York."
    )
    zone_column: str = option(
        "", "Column with the name of the event's time zone, e.g. America/New_York."
    )
    timezone: str = option(
        "",
        "Time zone of all events, e.g. America/New_York; places: looked up by the coordinates "
        "(pip install 'stt_jax[zones]').",
    )
    utc_offset_minutes: int = option(0, "Offset of local time from UTC of all events, minutes.")
    unzoned_times: str = option(
        "auto",
        "What a written time without zone is; auto: local if --timezone=NAME, --zone_column or "
        "--utc_offset_minutes is given, else UTC.",
        choices=("auto", "utc", "local"),
    )

    def __post_init__(self) -> None:
        """Refuses combinations that contradict each other."""
        check_choices(self)
        check(bool(self.user) and bool(self.item), "--user and --item must name columns")
        check(
            not (self.time and self.untimed),
            f"--untimed contradicts --time={self.time}; leave one of them out",
        )
        check(
            bool(self.latitude) == bool(self.longitude),
            "--latitude and --longitude go together; "
            f"got --latitude={self.latitude!r} --longitude={self.longitude!r}",
        )
        check(
            len(set(self.context)) == len(self.context),
            f"--context={','.join(self.context)} names a column twice",
        )
        check(
            len(set(self.numeric)) == len(self.numeric),
            f"--numeric={','.join(self.numeric)} names a column twice",
        )
        for flag in ("item_traits", "user_traits"):
            names = [text.partition(":")[0] for text in getattr(self, flag)]
            check(
                len(set(names)) == len(names),
                f"--{flag}={','.join(getattr(self, flag))} names a column twice",
            )
        check(
            not (self.domain and DOMAIN in self.item_traits),
            f"with --domain={self.domain} no column of --item_traits can be named {DOMAIN!r}",
        )
        check_limit(self, "session_gap_h", 1e7)
        check(
            not (self.session and self.session_gap_h),
            f"give one of --session={self.session} and --session_gap_h={self.session_gap_h}",
        )
        zones = [
            self.utc_offset_column,
            self.zone_column,
            self.timezone,
            self.utc_offset_minutes,
        ]
        check(
            sum(map(bool, zones)) <= 1,
            "give one of --utc_offset_column, --zone_column, --timezone and --utc_offset_minutes",
        )
        check(
            self.timezone != "places" or (bool(self.latitude) and self.unzoned_times != "local"),
            "--timezone=places needs --latitude and --longitude, and times in UTC",
        )
        check(
            abs(self.utc_offset_minutes) <= 18 * 60,
            f"--utc_offset_minutes must be within 18 hours; got {self.utc_offset_minutes}",
        )
