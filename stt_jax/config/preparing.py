"""Options of what makes or changes a prepared log: prepare, forget, generate."""

from __future__ import annotations

import dataclasses

from stt_jax.config.options import check, check_choices, check_limit, option
from stt_jax.config.raw import ColumnOptions, InputOptions

LARGEST_COUNT = 2**31 - 1  # events
LONGEST_S, LONGEST_DAYS = 1e11, 1e6  # times themselves are below 1e11 seconds


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
        "km/h; after a stray first fix, from the last one dropped; 0: no limit.",
    )
    min_user_events: int = option(0, "Keep users with this many events or more (k-core).")
    min_item_events: int = option(0, "Keep items with this many events or more (k-core).")
    strict: bool = option(
        False,
        "Stop at the first broken value instead of counting it, and at a quoted field that spans "
        "lines: it may be rows that a stray quote has swallowed.",
    )
    max_broken_fraction: float = option(
        0.5,
        "Stop when more of the rows than this are broken in one way, or more of the lines are "
        "inside quoted fields: a wrong flag, likely.",
    )

    def __post_init__(self) -> None:
        """Refuses impossible limits."""
        for name, largest in (
            ("dedupe_window_s", LONGEST_S),
            ("max_events_per_day", LARGEST_COUNT),
            ("max_speed_kmh", 1e9),  # light is little faster
            ("min_user_events", LARGEST_COUNT),
            ("min_item_events", LARGEST_COUNT),
        ):
            check_limit(self, name, largest)
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
        check_choices(self)
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
        check_limit(self, "coarsen_time_s", LONGEST_S)


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
        (),
        "Bring numeric columns to one scale: price:zscore, price:minmax or price:robust. The model "
        "cuts them at 10 and -10.",
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
    validation_users: float = option(
        1.0,
        "split=leave_one_out: share of the users whose event before the last validates; that of "
        "the others trains, too.",
    )

    def __post_init__(self) -> None:
        """Refuses impossible or doubly given cuts."""
        check_choices(self)
        for part in ("validation", "test"):
            fraction, days = getattr(self, f"{part}_fraction"), getattr(self, f"{part}_days")
            check(0 <= fraction < 1, f"--{part}_fraction must be in [0, 1); got {fraction}")
            check_limit(self, f"{part}_days", LONGEST_DAYS)
            check(
                not (days and getattr(self, f"{part}_from")),
                f"give one of --{part}_days and --{part}_from",
            )
        check(
            0 <= self.validation_users <= 1,
            f"--validation_users must be in [0, 1]; got {self.validation_users}",
        )
        check(
            self.validation_users == 1 or self.split == "leave_one_out",
            "--validation_users needs --split=leave_one_out",
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


@dataclasses.dataclass(frozen=True)
class CityConfig:
    """A generated city; see `stt_jax.data.city_law` for what its people do."""

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
