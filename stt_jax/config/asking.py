"""Options of what asks a trained model: evaluate, recommend, serve, export."""

from __future__ import annotations

import dataclasses

from stt_jax.config.options import check, check_choices, check_finite, option
from stt_jax.config.training import MOST_TIMES

TARGETS = ("every", "session_last", "last")
CONTEXTS = ("all", "strict")
SEEN = ("keep", "leave_out")
TRENDS = ("training", "live")
DOMAINS = ("named", "any")


@dataclasses.dataclass(frozen=True)
class ProtocolConfig:
    """What an evaluation asks and what may be known when it does."""

    targets: str = option(
        "every",
        "Which events of the part are predicted.",
        choices=TARGETS,
    )
    context: str = option(
        "all",
        "all: everything of the person before the target, as in service; strict: earlier parts "
        "and the target's own session, as in next-place papers.",
        choices=CONTEXTS,
    )
    seen: str = option(
        "keep",
        "Items that the person has had: keep them in the ranking, or leave_out, where nobody takes "
        "one twice (films).",
        choices=SEEN,
    )
    trends: str = option(
        "training",
        "What was popular lately. training: as counted in the training part, however old when a "
        "request comes; live: in all parts, each hour's for the hours after it, as in service.",
        choices=TRENDS,
    )
    domains: str = option(
        "named",
        "With domains in the log: named: a request says which it wants, that of its target, and is "
        "answered from there; any: it leaves that open.",
        choices=DOMAINS,
    )

    def __post_init__(self) -> None:
        check_choices(self)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which run is evaluated, on what, and what it is compared with."""

    run: str = option("", "Directory of the run.")
    together_with: tuple[str, ...] = option(
        (), "Runs that differ in their seeds only: their probabilities are averaged with the run's."
    )
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    part: str = option("test", "Part that is predicted.", choices=("validation", "test"))
    targets: str = option(
        "as_run",
        "Which events are predicted; as_run: as in the run's validation.",
        choices=("as_run", *TARGETS),
    )
    context: str = option(
        "as_run",
        "What may be seen of the person; as_run: as in the run's validation.",
        choices=("as_run", *CONTEXTS),
    )
    seen: str = option(
        "as_run",
        "Items that the person has had; as_run: as in the run's validation.",
        choices=("as_run", *SEEN),
    )
    trends: str = option(
        "as_run",
        "What was popular lately: counted in the training part, or live, as in service; as_run: as "
        "in the run's validation.",
        choices=("as_run", *TRENDS),
    )
    domains: str = option(
        "as_run",
        "With domains in the log, whether requests name theirs; as_run: as in the run's "
        "validation.",
        choices=("as_run", *DOMAINS),
    )
    asked_window: int = option(
        0, "The longest history that a request sees; 0 = as the run. To try before a training."
    )
    habit_share: float = option(
        -1.0, "Share of habits in the answer, in [0, 1); -1 = as the run. To try before a training."
    )
    likely_times: int = option(
        -1,
        "At how many likely times a request of unknown time is asked; -1 = as the run. To try "
        "before a training.",
    )
    max_targets: int = option(20_000, "Most targets, drawn by a fixed seed; 0 = all of them.")
    known_in: str = option(
        "",
        "Prepared log of the same events: only targets whose person and item its training part "
        "has, too, are counted. To compare runs that train on more with those that do on less.",
    )
    baselines: bool = option(True, "Tune and show the counting baselines beside the model.")
    optimum: str = option(
        "",
        "File of best possible metrics, written by stt_jax.generate; over all places, so not with "
        "--domains=named or --seen=leave_out.",
    )
    output: str = option("", "JSON report; empty = evaluation-PART.json in the run directory.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.max_targets >= 0, "--max_targets must not be negative")
        check(self.asked_window >= 0, f"--asked_window={self.asked_window} must not be negative")
        check(
            self.habit_share == -1 or 0 <= self.habit_share < 1,
            f"--habit_share={self.habit_share} must be in [0, 1), or -1 for that of the run",
        )
        check(
            -1 <= self.likely_times <= MOST_TIMES,
            f"--likely_times={self.likely_times} must be in 0..{MOST_TIMES}, or -1 for as the run",
        )


@dataclasses.dataclass(frozen=True)
class RequestConfig:
    """One question: who, when, where, and what the list may hold."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    items: str = option(
        "",
        "Table of items that training did not know, to be recommended too; columns are named as in "
        "what the log was prepared from.",
    )
    user: str = option("", "Id of the person, as in the raw log; empty = somebody new.")
    traits: tuple[str, ...] = option(
        (), "What is known of the person, e.g. gender=F,age=31: columns of --user_traits."
    )
    key_file: str = option("", "The key file of a log that was prepared with --pseudonymise.")
    time: str = option(
        "",
        "Request time, ISO 8601; without a zone it is local time, where the person's last event "
        "before it was. Events after it are not used. Empty = unknown, after the last event.",
    )
    latitude: str = option("", "Request latitude, degrees; empty = unknown, as is the place 0, 0.")
    longitude: str = option("", "Request longitude, degrees; empty = unknown.")
    k: int = option(10, "Length of the list.")
    exclude_seen: str | bool = option(
        "as_run",
        "Leave out items that the person has had; as_run: if the run was validated so, by --seen.",
        choices=("as_run", "true", "false"),
    )
    radius_km: float = option(
        0.0, "Only items within this distance of the request or else the last place; 0 = all."
    )
    domains: tuple[str, ...] = option((), "Only items of these domains; empty = all.")
    categories: tuple[str, ...] = option((), "Only items of these categories; empty = all.")
    max_per_category: int = option(0, "Most items of one category in the list; 0 = any number.")
    diversity: float = option(
        0.0,
        "How much unlike each other the items of the list are to be, in 0..1 (maximal marginal "
        "relevance); 0 = by probability alone.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.exclude_seen, bool):  # from a library caller; kept as its word
            object.__setattr__(self, "exclude_seen", str(self.exclude_seen).lower())
        check_choices(self)
        check(self.k > 0, f"--k={self.k} must be positive")
        for text in self.traits:
            check("=" in text, f"--traits={text}: write NAME=VALUE")
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
class ListsConfig:
    """Many questions at once, and where their lists go."""

    requests: str = option(
        "",
        "all: one list for everybody in the log, by the time, place and rules given here; or a "
        "table with a column user and, where wanted, time, latitude and longitude, one request a "
        "row; what a row leaves empty is as given here. Empty = the one request of --user.",
    )
    output: str = option("", "Table of the lists of --requests, a .parquet or .csv file.")

    def __post_init__(self) -> None:
        check(
            bool(self.requests) == bool(self.output),
            "--requests and --output go together; give both or none",
        )
        check(
            not self.output or self.output.endswith((".parquet", ".csv")),
            f"--output={self.output} must end in .parquet or .csv",
        )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """How a run is served over HTTP."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    items: str = option(
        "",
        "Table of items that training did not know, to be recommended too; columns are named as in "
        "what the log was prepared from. Items that a newer model was trained with are left out.",
    )
    host: str = option("127.0.0.1", "Address to listen on; any but this machine needs a token.")
    port: int = option(8000, "Port to listen on; 0 = any free one, printed.")
    store: str = option(
        "",
        "SQLAlchemy URL of the event log, e.g. postgresql+psycopg://user@host/name; empty = "
        "SQLite, events.db in the run directory.",
    )
    key_file: str = option(
        "",
        "The key file of a log that was prepared with --pseudonymise: ids come in as in the raw "
        "log and are kept as pseudonyms.",
    )
    api_token_file: str = option(
        "",
        "File with the token that callers send as 'Authorization: Bearer TOKEN'; empty = none: "
        "then it answers only who asks for localhost, 127.0.0.1, [::1] or --host.",
    )
    state_megabytes: int = option(256, "Memory for live states of people.")
    max_batch: int = option(32, "Most requests that are answered in one call.")
    max_waiting: int = option(512, "Requests that may wait; more are answered 429.")
    index_candidates: int = option(
        0,
        "Items that an approximate index picks for a request without filters, to be scored in "
        "place of the whole catalogue; for a million items. Recall is in the README. 0 = no index.",
    )
    timeout_s: float = option(5.0, "A request that waited longer is answered 429.")
    max_body_bytes: int = option(1 << 20, "Largest request body; a larger one is answered 413.")
    receive_s: float = option(10.0, "Seconds in which a client has to send a whole request.")
    swap_seconds: float = option(
        10.0, "How often to look for a newer checkpoint, and to count what is popular anew."
    )

    def __post_init__(self) -> None:
        check_finite(self)
        for name in ("state_megabytes", "max_batch", "max_waiting", "max_body_bytes"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        for name in ("timeout_s", "receive_s", "swap_seconds"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        candidates = self.index_candidates
        check(candidates >= 0, f"--index_candidates={candidates} must be 0 or more")
        check(0 <= self.port < 65536, f"--port={self.port} must be in 0..65535")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Which run is exported, and where to."""

    run: str = option("", "Directory of the run.")
    data: str = option("", "Directory of the prepared log; empty = the one of the run.")
    items: str = option(
        "",
        "Table of items that training did not know, to be recommended too; columns are named as in "
        "what the log was prepared from.",
    )
    key_file: str = option(
        "",
        "With --items, the key file of a log that was prepared with "
        "--pseudonymise=users_and_items: the items get pseudonyms, too.",
    )
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
