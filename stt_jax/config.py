"""Every option of every command: one tree of frozen dataclasses.

The command lines make their flags from these classes (`stt_jax.command`), the library takes the
same objects, and a run writes them back as a flagfile beside its checkpoints. A field is made by
`option`, which carries the sentence that `--help` prints. Checks live in `__post_init__`, so a
wrong value is refused in the library with the words that the command line prints.
"""

from __future__ import annotations

import codecs
import dataclasses
from typing import Any


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
      default: the value when the flag is not given. A tuple makes a comma-separated list flag.
      help: one sentence for `--help`, with the unit where there is one.
      choices: the allowed values of a string option.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition`; used by every `__post_init__`."""
    if not condition:
        raise ValueError(message)


# --- raw log -> prepared log (stt_jax.prepare) ---


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
    items: str = option("", "Optional table of items (name, category, place), joined by item id.")
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
        example = "e.g. --input=log.csv.gz --output=prepared/"
        check(bool(self.input), f"--input is missing: name the files of the log, {example}")
        check(bool(self.output), f"--output is missing: name a folder, {example}")
        check(self.threads >= 0, f"--threads must be 0 or more; got {self.threads}")
        check(self.memory_gb >= 0, f"--memory_gb must be 0 or more; got {self.memory_gb}")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(
                f"--encoding={self.encoding} is not known; e.g. utf-8, latin-1, cp1252"
            ) from error


@dataclasses.dataclass(frozen=True)
class ColumnOptions:
    """Which column is what. A column may come from the log or from the --items table."""

    user: str = option("user_id", "Column with the user's id.")
    item: str = option("item_id", "Column with the item's id (place, product, article).")
    time: str = option("", "Column with the time of the event.")
    untimed: bool = option(False, "The log has no times: events are in the order of the rows.")
    latitude: str = option("", "Column with the latitude of the event's place, degrees.")
    longitude: str = option("", "Column with the longitude of the event's place, degrees.")
    category: str = option("", "Column with the category of the item.")
    name: str = option("", "Column with the name of the item, for people to read.")
    context: tuple[str, ...] = option(
        (), "Further categorical columns of the event, e.g. device,country."
    )
    numeric: tuple[str, ...] = option(
        (), "Numeric columns of the event, e.g. price,quantity; what is no number is unknown."
    )
    session: str = option("", "Column with the log's own session or trajectory id.")
    session_gap_h: float = option(
        0.0, "Instead of --session: a pause of more than so many hours begins a new one."
    )
    items_key: str = option("", "Column of --items with the item id; empty: named as --item.")
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
        check(self.session_gap_h >= 0, "--session_gap_h must be 0 or more")
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


@dataclasses.dataclass(frozen=True)
class CleaningOptions:
    """Which rows stay."""

    drop_if: tuple[str, ...] = option(
        (),
        "Drop rows by comparisons such as 'Quantity<=0' or 'Invoice^=C' (begins with), comma "
        "separated; operators <= >= < > = != ^=. Against a number < and > compare numbers, the "
        "others text. Empty values are never dropped by this.",
    )
    drop_missing: tuple[str, ...] = option((), "Drop rows in which one of these columns is empty.")
    keep_duplicates: bool = option(
        False, "Keep rows that equal an earlier row of their part in every column in use."
    )
    dedupe_window_s: float = option(
        0.0, "Drop an event less than so many seconds after the user's last one at the same item."
    )
    time_from: str = option("", "Drop events before this UTC time (ISO 8601).")
    time_to: str = option("", "Drop events at this UTC time (ISO 8601) or later.")
    max_events_per_day: int = option(
        0,
        "Take a user for a bot from the first event on that is one more than this on its local "
        "day: that event and all later ones go; 0: no limit.",
    )
    max_speed_kmh: float = option(
        0.0,
        "Drop an event that its user could reach from the last one kept only faster than this, "
        "km/h; 0: no limit.",
    )
    min_user_events: int = option(0, "Keep users with this many events or more (k-core).")
    min_item_events: int = option(0, "Keep items with this many events or more (k-core).")
    strict: bool = option(False, "Stop at the first broken value instead of counting it.")
    max_broken_fraction: float = option(
        0.5, "Stop when more of the rows than this are broken in one way: a wrong flag, likely."
    )

    def __post_init__(self) -> None:
        """Refuses impossible limits."""
        for name in (
            "dedupe_window_s",
            "max_events_per_day",
            "max_speed_kmh",
            "min_user_events",
            "min_item_events",
        ):
            check(getattr(self, name) >= 0, f"--{name} must be 0 or more")
        check(
            0 <= self.max_broken_fraction <= 1,
            f"--max_broken_fraction must be in 0..1; got {self.max_broken_fraction}",
        )


@dataclasses.dataclass(frozen=True)
class ProtectionOptions:
    """What is hidden of people, after the cleaning and before the split."""

    pseudonymise: str = option(
        "",
        "Replace the ids of users, or of users and items, by keyed hashes (BLAKE2b). Names and "
        "other columns stay as they are.",
        choices=("", "users", "users_and_items"),
    )
    key_file: str = option(
        "",
        "File with the key of the pseudonyms, readable by its owner only, outside of --output; it "
        "is not copied. The same key gives the same pseudonyms in every log.",
    )
    make_key: bool = option(False, "Make a new --key_file if there is none.")
    coarsen_cell: str = option(
        "",
        "Move places to the centre of their H3 cell of this resolution, 0 (large) to 15 (small), "
        "e.g. 7 (5 square km); 'stt_jax[cells]'.",
    )
    coarsen_time_s: int = option(
        0, "Move times back to a whole multiple of so many seconds since 1970 (UTC); 0: exact."
    )

    def __post_init__(self) -> None:
        """Refuses a missing key file and impossible grids."""
        check(
            bool(self.pseudonymise) == bool(self.key_file),
            "--pseudonymise and --key_file go together; "
            f"got --pseudonymise={self.pseudonymise!r} --key_file={self.key_file!r}",
        )
        check(
            bool(self.key_file) or not self.make_key,
            "--make_key needs --key_file: the file to make",
        )
        cell = self.coarsen_cell
        check(
            cell == "" or (cell.isdecimal() and int(cell) <= 15),
            f"--coarsen_cell={cell} is no resolution of H3; give 0 (large) to 15 (small)",
        )
        check(self.coarsen_time_s >= 0, "--coarsen_time_s must be 0 or more")


@dataclasses.dataclass(frozen=True)
class ValueOptions:
    """What is done to values, after the split and fitted to the training part, in this order."""

    outliers: tuple[str, ...] = option(
        (),
        "Make outliers of numeric columns unknown: price:mad:5 is further from the median than 5 "
        "robust standard deviations, price:quantile:0.001 beyond these two quantiles.",
    )
    fill: tuple[str, ...] = option(
        (),
        "Fill unknown values, one rule after the other: COLUMN:METHOD with constant:VALUE, mean, "
        "median, mode (also mean_item, mode_user, ...), interpolate (in time within a user) or "
        "model (boosted trees; pip install 'stt_jax[impute]'). Of categorical columns: constant, "
        "mode, model; of a coordinate, meaning both: interpolate, median, model.",
    )
    smooth: tuple[str, ...] = option(
        (),
        "Smooth numeric columns along each user's past: price:median:5 (last 5 events), "
        "price:exponential:0.3 (weight of the new value); a coordinate, meaning both: "
        "latitude:kalman:20 (error of a fix, metres).",
    )
    features: tuple[str, ...] = option(
        (),
        "Further columns: gap_h and step_km (since the user's last event and place), centre_km "
        "(from the user's median place), hour, weekday (as points on a circle), scenario (home, "
        "work, other by the user's nights and office hours).",
    )
    cells: tuple[str, ...] = option(
        (), "Resolutions of H3 cells to add as categorical columns, e.g. 7,9; 'stt_jax[cells]'."
    )
    transform: tuple[str, ...] = option(
        (), "Change the shape of numeric columns: price:log1p, price:boxcox or price:quantile."
    )
    normalise: tuple[str, ...] = option(
        (), "Bring numeric columns to one scale: price:zscore, price:minmax or price:robust."
    )

    def __post_init__(self) -> None:
        """Refuses unknown features and resolutions."""
        known = ("gap_h", "step_km", "centre_km", "hour", "weekday", "scenario")
        for name in self.features:
            check(name in known, f"--features={name} is not known; give {', '.join(known)}")
        for name in self.cells:
            check(
                name.isdigit() and int(name) <= 15,
                f"--cells={name} is no resolution of H3; give numbers of 0 (large) to 15 (small)",
            )
        for flag in ("features", "cells"):
            names = getattr(self, flag)
            check(len(set(names)) == len(names), f"--{flag}={','.join(names)} names one twice")


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Which events train, validate and test."""

    split: str = option(
        "time",
        "time: the last events of the whole log are the test; leave_one_out: the last event of "
        "each user; given: --validation_input and --test_input.",
        choices=("time", "leave_one_out", "given"),
    )
    validation_fraction: float = option(0.1, "split=time: fraction of the events to validate on.")
    test_fraction: float = option(0.1, "split=time: fraction of the events to test on.")
    validation_days: float = option(0.0, "split=time: validate on so many days before the test.")
    test_days: float = option(0.0, "split=time: test on the last days, instead of a fraction.")
    validation_from: str = option("", "split=time: validate from this UTC time (ISO 8601) on.")
    test_from: str = option("", "split=time: test from this UTC time (ISO 8601) on.")

    def __post_init__(self) -> None:
        """Refuses impossible or doubly given cuts."""
        for part in ("validation", "test"):
            fraction, days = getattr(self, f"{part}_fraction"), getattr(self, f"{part}_days")
            check(0 <= fraction < 1, f"--{part}_fraction must be in [0, 1); got {fraction}")
            check(days >= 0, f"--{part}_days must be 0 or more; got {days}")
            check(
                not (days and getattr(self, f"{part}_from")),
                f"give one of --{part}_days and --{part}_from",
            )
        total = self.validation_fraction + self.test_fraction
        check(
            total < 1,
            f"--validation_fraction and --test_fraction leave nothing to train on: {total} >= 1",
        )


@dataclasses.dataclass(frozen=True)
class PrepareConfig(
    ValueOptions, SplitOptions, ProtectionOptions, CleaningOptions, ColumnOptions, InputOptions
):
    """Everything about one preparation; the command line shows its six parts as groups."""

    def __post_init__(self) -> None:
        """Checks the parts, then what they ask of each other."""
        for part in (
            InputOptions,
            ColumnOptions,
            CleaningOptions,
            ProtectionOptions,
            SplitOptions,
            ValueOptions,
        ):
            part.__post_init__(self)
        if self.layout:
            return  # what the parts ask of each other is known once the layout has been put in
        given = bool(self.validation_input or self.test_input)
        check(
            given == (self.split == "given"),
            "--split=given needs --validation_input or --test_input, and they need --split=given",
        )
        check(
            not (self.untimed or self.format == "sequences") or self.split != "time",
            "--split=time needs times; for a log without times give --split=leave_one_out",
        )
        for name in (
            "dedupe_window_s",
            "time_from",
            "time_to",
            "max_events_per_day",
            "session_gap_h",
            "coarsen_time_s",
        ):
            check(
                bool(self.time) or not getattr(self, name),
                f"--{name} needs times; name their column by --time",
            )
        placed, timed = bool(self.latitude), bool(self.time)
        check(placed or not self.coarsen_cell, "--coarsen_cell needs places; name --latitude")
        for name in (*self.features, *(f"cells={cell}" for cell in self.cells)):
            needs_place = name in ("step_km", "centre_km") or name.startswith("cells=")
            flag = name if name.startswith("cells=") else f"features={name}"
            check(placed or not needs_place, f"--{flag} needs places; name them by --latitude")
            check(timed or needs_place, f"--{flag} needs times; name their column by --time")
        made = {"gap_h", "step_km", "centre_km", "scenario", "hour_sin", "hour_cos"}
        made |= {"weekday_sin", "weekday_cos", *(f"cell_{cell}" for cell in self.cells)}
        taken = made & {*self.numeric, *self.context} if self.features or self.cells else set()
        check(not taken, f"column {', '.join(sorted(taken))}: the name is that of a made feature")
        check(
            bool(self.time and self.latitude) or not self.max_speed_kmh,
            "--max_speed_kmh needs times and places; name their columns by --time, --latitude and "
            "--longitude",
        )


# --- taking a person out (stt_jax.forget) ---


@dataclasses.dataclass(frozen=True)
class ForgetConfig:
    """Who is forgotten, and where."""

    data: str = option("", "Directory of the prepared log.")
    user: str = option("", "Id of the person, as in the log; with --key_file, as in the raw log.")
    key_file: str = option("", "The key file of a log that was prepared with --pseudonymise.")
    runs: str = option("runs", "Folder in which to look for runs that have seen the person.")

    def __post_init__(self) -> None:
        """Refuses a missing log or person."""
        check(bool(self.data), "--data is missing: name the directory of a prepared log")
        check(bool(self.user), "--user is missing: give the id of a person of the log")


# --- the synthetic city (stt_jax.generate) ---


@dataclasses.dataclass(frozen=True)
class CityConfig:
    """A generated city; see `stt_jax.data.synthetic` for what its people do."""

    output: str = option("city", "Folder for log.csv.gz and optimum.arrow; made if missing.")
    num_users: int = option(400, "People, at least 1.")
    num_places: int = option(200, "Places, at least 20; homes and offices among them.")
    num_days: int = option(60, "Length of the log in days, at least 7; about 4 events a day.")
    informative: bool = option(True, "Let time and place matter; off: only habit and last place.")
    seed: int = option(1, "Seed of everything drawn, at least 0.")

    def __post_init__(self) -> None:
        """Refuses sizes that make no city."""
        for name, least in (("num_users", 1), ("num_places", 20), ("num_days", 7), ("seed", 0)):
            value = getattr(self, name)
            check(value >= least, f"--{name} must be at least {least}; got {value}.")


# --- training and evaluation (stt_jax.train, stt_jax.evaluate, stt_jax.recommend) ---


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: event embedding, gated blocks, decoder, generating and pointing head."""

    width: int = option(64, "Width of embeddings and hidden states.")
    num_layers: int = option(2, "Gated spatiotemporal blocks that encode the history.")
    num_heads: int = option(4, "Attention heads; must divide the width.")
    dropout: float = option(0.3, "Dropout rate on embeddings and block outputs, in [0, 1).")
    use_time: bool = option(True, "Let the model see times: gaps, hour of the week, request time.")
    use_place: bool = option(True, "Let the model see places: coordinates, distances, cells.")
    use_gate: bool = option(True, "Gate each block, f_enc(x) * g_att(x, x'); off: attention only.")
    use_decoder: bool = option(
        True, "Let the request attend to the history; off: it starts from the last state alone."
    )
    use_pointer: bool = option(True, "Mix in pointing at the person's own history.")
    use_person: bool = option(True, "Give each person of the training part an embedding.")
    num_time_buckets: int = option(64, "Log-scale buckets of the time gap, two an octave; 2..256.")
    num_space_buckets: int = option(64, "Log-scale buckets of the distance; 2..128.")
    num_order_buckets: int = option(
        64, "How many events back the pointer can tell apart; 1..256, older ones share the last."
    )
    attention: str = option(
        "auto",
        "Attention backend; auto takes the first that accepts the input.",
        choices=("auto", "reference", "xla"),
    )
    dtype: str = option(
        "float32",
        "Type of activations; parameters, softmax, norms, losses and sums stay float32.",
        choices=("float32", "bfloat16"),
    )
    remat: bool = option(
        False, "Keep only each block's input for the backward pass and compute the rest again."
    )

    def __post_init__(self) -> None:
        check(self.width > 0 and self.num_layers > 0, "--width and --num_layers must be positive")
        check(
            self.num_heads > 0 and self.width % self.num_heads == 0,
            f"--num_heads={self.num_heads} must divide --width={self.width}",
        )
        check(0 <= self.dropout < 1, f"--dropout={self.dropout} must be in [0, 1)")
        check(
            2 <= self.num_time_buckets <= 256 and 2 <= self.num_space_buckets <= 128,
            "--num_time_buckets must be in 2..256 and --num_space_buckets in 2..128",
        )
        check(1 <= self.num_order_buckets <= 256, "--num_order_buckets must be in 1..256")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained on the training part of a prepared log."""

    data: str = option("", "Directory of the prepared log.")
    run: str = option("", "Directory of the run: checkpoints, metrics, flags.")
    seed: int = option(0, "Seed of initialisation, shuffling, dropout and hiding.")
    epochs: float = option(10.0, "Passes over the training events.")
    window: int = option(128, "Tokens in a row: the longest history that a request sees.")
    requests: int = option(
        64, "Requests in a row, at most --window; fewer gives each a longer past at a price."
    )
    batch_rows: int = option(16, "Rows in a batch.")
    learning_rate: float = option(2e-3, "Peak learning rate of AdamW.")
    warmup: float = option(0.05, "Fraction of the steps that the learning rate rises.")
    weight_decay: float = option(0.05, "AdamW weight decay, on matrices only.")
    clip_norm: float = option(1.0, "Largest global norm of the gradient.")
    accumulate: int = option(
        1, "Parts of a batch whose gradients are added up before the one update; less memory."
    )
    label_smoothing: float = option(0.1, "Weight of the uniform part of the generating target.")
    loss: str = option(
        "full",
        "Softmax over the catalogue. full: all logits at once; chunked: the same numbers in little "
        "memory; sampled: the items of the batch and a drawn part of the others stand for all.",
        choices=("full", "chunked", "sampled"),
    )
    loss_chunk_items: int = option(8192, "loss=chunked: items whose logits are held at once.")
    num_negatives: int = option(
        1024, "loss=sampled: items drawn a step, at most as many as there are."
    )
    negatives: str = option(
        "log_uniform",
        "loss=sampled: which items are drawn. log_uniform: 1..V in strata of equal log rank, so "
        "frequent items nearly always; uniform: each alike.",
        choices=("log_uniform", "uniform"),
    )
    in_batch_negatives: bool = option(
        True, "loss=sampled: every request is also compared with the targets of the whole batch."
    )
    known_time_rate: float = option(0.5, "Fraction of training requests that show their time.")
    known_place_rate: float = option(0.1, "Fraction of training requests that show their place.")
    place_noise_m: float = option(
        500.0,
        "Standard deviation by which a shown training place is moved: a device's place is "
        "near, not at, the item that comes next.",
    )
    validation_every: float = option(1.0, "Epochs between validations.")
    validation_targets: int = option(2000, "Most validation targets per validation, drawn by seed.")
    patience: int = option(5, "Validations without a better MRR before stopping; 0 = never stop.")
    dp_epsilon: float = option(
        0.0,
        "Train with differential privacy for people, at most so much of it spent; 0 = without. "
        "--batch_rows is then the expected number of people in a step.",
    )
    dp_delta: float = option(1e-6, "The delta of that privacy; below one over the people.")
    dp_clip: float = option(1.0, "Largest norm of the gradient of one person in a private step.")
    keep: int = option(2, "Checkpoints kept besides the best.")
    checkpoint_every: int = option(
        0, "Steps between checkpoints; 0 = one with each validation, and when stopped."
    )
    max_bad_steps: int = option(
        10,
        "Stop after so many steps in a row whose loss or gradient is not finite; such steps "
        "change no parameter.",
    )

    def __post_init__(self) -> None:
        check(0 < self.requests <= self.window, "--requests must be in 1..--window")
        check(self.batch_rows > 0 and self.epochs > 0, "--batch_rows and --epochs must be positive")
        check(self.learning_rate > 0, "--learning_rate must be positive")
        check(0 <= self.warmup < 1, f"--warmup={self.warmup} must be in [0, 1)")
        for name in ("label_smoothing", "known_time_rate", "known_place_rate"):
            check(0 <= getattr(self, name) <= 1, f"--{name} must be in [0, 1]")
        check(self.validation_every > 0, "--validation_every must be positive")
        check(self.checkpoint_every >= 0, "--checkpoint_every must not be negative")
        check(self.dp_epsilon >= 0, f"--dp_epsilon={self.dp_epsilon} must not be negative")
        check(0 < self.dp_delta < 1, f"--dp_delta={self.dp_delta} must be in (0, 1)")
        check(self.dp_clip > 0, f"--dp_clip={self.dp_clip} must be positive")
        for name in ("accumulate", "max_bad_steps"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        for name in ("loss_chunk_items", "num_negatives"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """Which devices and processes do the work; never what comes out of it."""

    mesh_data: int = option(1, "Devices that share the rows of a batch; -1 = all that are left.")
    mesh_model: int = option(
        1, "Devices that share the rows of the item and people tables; -1 = all that are left."
    )
    fsdp: bool = option(False, "Split the other parameters too, over the devices of --mesh_data.")
    coordinator: str = option(
        "",
        "Several processes: host:port of process 0, or auto to find it from SLURM, Kubernetes, "
        "Open MPI or the cloud.",
    )
    num_processes: int = option(1, "Several processes: how many.")
    process_id: int = option(0, "Several processes: the number of this one, from 0.")

    def __post_init__(self) -> None:
        for name in ("mesh_data", "mesh_model"):
            size = getattr(self, name)
            check(size == -1 or size > 0, f"--{name}={size} must be positive, or -1 for the rest")
        check(
            not (self.mesh_data == -1 and self.mesh_model == -1),
            "only one of --mesh_data and --mesh_model can be -1",
        )
        check(
            128 % max(1, self.mesh_model) == 0,
            f"--mesh_model={self.mesh_model} must be a power of two up to 128",
        )
        check(
            0 <= self.process_id < self.num_processes,
            f"--process_id={self.process_id} must be in 0..--num_processes-1 = "
            f"{self.num_processes - 1}",
        )
        check(
            self.num_processes == 1 or bool(self.coordinator),
            "--num_processes needs --coordinator=host:port of process 0",
        )


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """Looking at a training without changing it."""

    dry_run: bool = option(
        False, "Print parameters, placement, operations and memory of the step, and stop there."
    )
    profile_steps: str = option(
        "", "Steps a:b of which a trace is written to profile/ in the run directory, for XProf."
    )

    def __post_init__(self) -> None:
        self.profiled()

    def profiled(self) -> range:
        """The steps of --profile_steps; empty where none are asked for."""
        if not self.profile_steps:
            return range(0)
        first, _, end = self.profile_steps.partition(":")
        check(
            first.isdecimal() and end.isdecimal() and int(first) < int(end),
            f"--profile_steps={self.profile_steps} must be a:b with a < b, e.g. 100:110",
        )
        return range(int(first), int(end))


@dataclasses.dataclass(frozen=True)
class ProtocolConfig:
    """What an evaluation asks and what may be known when it does."""

    targets: str = option(
        "every",
        "Which events of the part are predicted.",
        choices=("every", "session_last", "last"),
    )
    context: str = option(
        "all",
        "all: everything of the person before the target, as in service; strict: earlier parts "
        "and the target's own session, as in next-place papers.",
        choices=("all", "strict"),
    )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which run is evaluated, on what, and what it is compared with."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    part: str = option("test", "Part that is predicted.", choices=("validation", "test"))
    targets: str = option(
        "as_run",
        "Which events are predicted; as_run: as in the run's validation.",
        choices=("as_run", "every", "session_last", "last"),
    )
    context: str = option(
        "as_run",
        "What may be seen of the person; as_run: as in the run's validation.",
        choices=("as_run", "all", "strict"),
    )
    max_targets: int = option(20_000, "Most targets, drawn by a fixed seed; 0 = all of them.")
    baselines: bool = option(True, "Tune and show the counting baselines beside the model.")
    optimum: str = option("", "File of best possible metrics, written by stt_jax.generate.")
    output: str = option("", "JSON report; empty = evaluation-PART.json in the run directory.")

    def __post_init__(self) -> None:
        check(self.max_targets >= 0, "--max_targets must not be negative")


@dataclasses.dataclass(frozen=True)
class RequestConfig:
    """One question: who, when, where, and what the list may hold."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    user: str = option("", "Id of the person, as in the raw log.")
    key_file: str = option("", "The key file of a log that was prepared with --pseudonymise.")
    time: str = option(
        "",
        "Request time, ISO 8601; without a zone it is the person's local time. Events after it "
        "are not used. Empty = unknown, after the last event.",
    )
    latitude: str = option("", "Request latitude, degrees; empty = unknown.")
    longitude: str = option("", "Request longitude, degrees; empty = unknown.")
    k: int = option(10, "Length of the list.")
    exclude_seen: bool = option(False, "Leave out items that the person has had.")
    radius_km: float = option(
        0.0, "Only items within this distance of the request or else the last place; 0 = all."
    )
    categories: tuple[str, ...] = option((), "Only items of these categories; empty = all.")
    max_per_category: int = option(0, "Most items of one category in the list; 0 = any number.")
    diversity: float = option(
        0.0,
        "How much unlike each other the items of the list are to be, in 0..1 (maximal marginal "
        "relevance); 0 = by probability alone.",
    )

    def __post_init__(self) -> None:
        check(self.k > 0, f"--k={self.k} must be positive")
        check(self.radius_km >= 0, f"--radius_km={self.radius_km} must not be negative")
        check(self.max_per_category >= 0, "--max_per_category must not be negative")
        check(0 <= self.diversity <= 1, f"--diversity={self.diversity} must be in 0..1")
        check(
            (self.latitude == "") == (self.longitude == ""),
            "--latitude and --longitude go together; give both or none",
        )
        for name, value, limit in (
            ("latitude", self.latitude, 90.0),
            ("longitude", self.longitude, 180.0),
        ):
            check(
                value == "" or (_is_number(value) and abs(float(value)) <= limit),
                f"--{name}={value} must be degrees between -{limit:g} and {limit:g}",
            )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """How a run is served over HTTP."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    host: str = option("127.0.0.1", "Address to listen on; any but this machine needs a token.")
    port: int = option(8000, "Port to listen on; 0 = any free one, printed.")
    store: str = option(
        "",
        "SQLAlchemy URL of the event log, e.g. postgresql+psycopg://user@host/name; empty = "
        "SQLite, events.db in the run directory.",
    )
    api_token_file: str = option(
        "", "File with the token that callers send as 'Authorization: Bearer TOKEN'; empty = none."
    )
    state_megabytes: int = option(256, "Memory for live states of people.")
    max_batch: int = option(32, "Most requests that are answered in one call.")
    max_waiting: int = option(512, "Requests that may wait; more are answered 429.")
    timeout_s: float = option(5.0, "A request that waited longer is answered 429.")
    max_body_bytes: int = option(1 << 20, "Largest request body; a larger one is answered 413.")
    receive_s: float = option(10.0, "Seconds in which a client has to send a whole request.")
    swap_seconds: float = option(10.0, "How often to look for a newer checkpoint.")

    def __post_init__(self) -> None:
        for name in ("state_megabytes", "max_batch", "max_waiting", "max_body_bytes"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        for name in ("timeout_s", "receive_s", "swap_seconds"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        check(0 <= self.port < 65536, f"--port={self.port} must be in 0..65535")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Which run is exported, and where to."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    out: str = option("", "Directory for the artifacts; made if missing.")
    k: int = option(100, "Items that the exported score gives, at most as many as there are.")

    def __post_init__(self) -> None:
        check(self.k > 0, f"--k={self.k} must be positive")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
