"""The log of accepted events: append-only, durable, the one thing that the service must not lose.

SQLite in its own file (WAL, every commit synced) or PostgreSQL, through SQLAlchemy Core. Each
person has a version that rises with every write, so a reader with a copy of a person's events sees
by one number that the copy is old, whoever wrote: several services can share one log.

    events   one row an accepted event, never changed
    people   a person's version, under a keyed hash; the row outlives the events of a forgotten one
    meta     the key of that hash; in SQLite files of before AUTOINCREMENT, the highest number ever
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

_SELECT_AT_ONCE = 500  # names in one statement; SQLite takes 32,766
_WAIT_MS = 10_000  # for another writer of the same SQLite file
_ERASE_WAIT_MS = 500  # for its readers, since nobody can write meanwhile

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_metadata = sa.MetaData()
_EVENTS = sa.Table(
    "events",
    _metadata,
    sa.Column("sequence", _BIG, primary_key=True, autoincrement=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("time_s", sa.BigInteger, nullable=False),
    sa.Column("utc_offset_s", sa.Integer),
    sa.Column("latitude_e7", sa.BigInteger),
    sa.Column("longitude_e7", sa.BigInteger),
    sa.Column("category", sa.Text),
    sa.Column("contexts", sa.JSON, nullable=False),
    sa.Column("numbers", sa.JSON),  # null in what was stored before there were any
    sa.UniqueConstraint("user", "event_id"),
    sa.Index("events_by_time", "user", "time_s", "sequence"),
    # No number is given twice, not even that of an event which was forgotten.
    sqlite_autoincrement=True,
)
_PEOPLE = sa.Table(
    "people",
    _metadata,
    sa.Column("person", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("forgotten", sa.Boolean, nullable=False),
)
_META = sa.Table(
    "meta",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


@dataclasses.dataclass(frozen=True)
class StoredEvent:
    """One event as it was accepted; ids and names are texts, known to a model or not.

    Attributes:
      user, item: ids.
      event_id: one event of a person is stored once under this id.
      time_s: unix seconds.
      utc_offset_s: local time = time_s + utc_offset_s; None = not told.
      latitude_e7, longitude_e7: 1e-7 degrees; None = unknown.
      category: name; None = not told.
      contexts: further columns by name.
      numbers: numeric columns by name, as the raw log has them; unknown ones are left out.
    """

    user: str
    event_id: str
    item: str
    time_s: int
    utc_offset_s: int | None = None
    latitude_e7: int | None = None
    longitude_e7: int | None = None
    category: str | None = None
    contexts: dict[str, str] = dataclasses.field(default_factory=dict)
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StoredItem:
    """What is counted of a stored event; `sequence` rises with every one."""

    sequence: int
    user: str
    event_id: str
    item: str
    time_s: int


_FIELDS = tuple(field.name for field in dataclasses.fields(StoredEvent))


def content_id(event: StoredEvent) -> str:
    """An id for an event that came without: equal events of a person are one, as in training."""
    parts = [getattr(event, name) for name in _FIELDS if name not in ("event_id", "numbers")]
    if event.numbers:  # those without keep the ids that they have always had
        parts.append(event.numbers)
    return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Version:
    """How far a person's events are.

    Attributes:
      number: rises with every write; 0 = nothing was ever written.
      forgotten: whether the person was once forgotten: events of before, those of a prepared log
        among them, are not to be used any more.
    """

    number: int = 0
    forgotten: bool = False


class StoreError(Exception):
    """The log cannot be read or written now; the message is for the caller of the service."""


class EventStore:
    """The log at a SQLAlchemy URL, e.g. `sqlite:///runs/x/events.db`."""

    def __init__(self, url: str) -> None:
        """Opens the log and makes its tables, or a column of them, if they are missing.

        Raises:
          StoreError: there is no database to be had at the URL, or it is damaged.
        """
        # Errors must not carry the parameters of a statement: they hold personal data.
        self._engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True)
        self._sqlite = self._engine.dialect.name == "sqlite"
        self._must_erase = self._sqlite  # one that was killed may have left something
        self._insert: Any = sqlite.insert if self._sqlite else postgresql.insert
        if self._sqlite:
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
        try:
            with self._engine.begin() as connection:
                if self._sqlite:
                    _check_sqlite(connection)
                else:  # two services that start at once must not both make the tables
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(5551212)"))
                _metadata.create_all(connection)
                _add_numbers(connection)
                self._key = self._read_key(connection)
                self._reuses_numbers = self._sqlite and _reuses_numbers(connection)
        except sa.exc.SQLAlchemyError as error:
            # The query may hold a password, too.
            shown = self._engine.url.set(query={}).render_as_string(hide_password=True)
            raise _explain(error, f"the event log at {shown} cannot be opened") from error
        self.erase_forgotten()

    def add(self, events: Sequence[StoredEvent]) -> set[tuple[str, str]]:
        """Stores events durably, all or none; those that are there already are left alone.

        Returns:
          (user, event_id) of those that were new.

        Raises:
          StoreError: nothing was stored.
        """
        fresh = {(event.user, event.event_id): event for event in reversed(events)}
        users = sorted({event.user for event in events})
        try:
            with self._engine.begin() as connection:
                # Locks the people first, always in the same order: what is read then stays true.
                self._raise_versions(connection, users, forgotten=False)
                for there in self._ids(connection, list(fresh)):
                    fresh.pop(there, None)
                if fresh:
                    rows = [dataclasses.asdict(event) for event in reversed(fresh.values())]
                    if self._reuses_numbers:
                        first = self._last_number(connection) + 1
                        rows = [row | {"sequence": first + i} for i, row in enumerate(rows)]
                    connection.execute(_EVENTS.insert(), rows)
        except sa.exc.SQLAlchemyError as error:
            raise _explain(error, "the events were not stored") from error
        return set(fresh)

    def versions(self, users: Iterable[str]) -> dict[str, Version]:
        """The version of each person."""
        names = {self._person(user): user for user in users}
        versions = dict.fromkeys(names.values(), Version())
        query = sa.select(_PEOPLE.c.person, _PEOPLE.c.version, _PEOPLE.c.forgotten)
        for part in _parts(list(names)):
            for row in self._read(query.where(_PEOPLE.c.person.in_(part))):
                versions[names[row.person]] = Version(row.version, row.forgotten)
        return versions

    def read(self, users: Iterable[str]) -> dict[str, list[StoredEvent]]:
        """All events of each person, in the order of their time, ties as they came."""
        events: dict[str, list[StoredEvent]] = {user: [] for user in users}
        query = sa.select(*(_EVENTS.c[name] for name in _FIELDS))
        query = query.order_by(_EVENTS.c.user, _EVENTS.c.time_s, _EVENTS.c.sequence)
        for part in _parts(list(events)):
            for row in self._read(query.where(_EVENTS.c.user.in_(part))):
                columns = row._asdict()
                columns["numbers"] = columns["numbers"] or {}
                events[row.user].append(StoredEvent(**columns))
        return events

    def after(self, sequence: int, most: int) -> list[StoredItem]:
        """The first events after a number, of everybody, in the order of their numbers."""
        names = [field.name for field in dataclasses.fields(StoredItem)]
        query = sa.select(*(_EVENTS.c[name] for name in names)).where(_EVENTS.c.sequence > sequence)
        rows = self._read(query.order_by(_EVENTS.c.sequence).limit(most))
        return [StoredItem(**row._asdict()) for row in rows]

    def last_items(
        self, users: Iterable[str], sequence: int, until_s: int
    ) -> dict[str, StoredItem]:
        """The latest event of each person among those before a number and not after `until_s`."""
        names = [field.name for field in dataclasses.fields(StoredItem)]
        latest_first = [_EVENTS.c.time_s.desc(), _EVENTS.c.sequence.desc()]
        place = sa.func.row_number().over(partition_by=_EVENTS.c.user, order_by=latest_first)
        query = sa.select(*(_EVENTS.c[name] for name in names), place.label("place"))
        query = query.where(_EVENTS.c.sequence < sequence, _EVENTS.c.time_s <= until_s)
        found: dict[str, StoredItem] = {}
        for part in _parts(list(users)):
            events = query.where(_EVENTS.c.user.in_(part)).subquery()
            latest = sa.select(*(events.c[name] for name in names)).where(events.c.place == 1)
            found |= {row.user: StoredItem(**row._asdict()) for row in self._read(latest)}
        return found

    def numbered(self, sequences: Sequence[int]) -> list[StoredItem]:
        """The events of some numbers that are still there."""
        names = [field.name for field in dataclasses.fields(StoredItem)]
        query = sa.select(*(_EVENTS.c[name] for name in names))
        return [
            StoredItem(**row._asdict())
            for part in _parts(list(sequences))
            for row in self._read(query.where(_EVENTS.c.sequence.in_(part)))
        ]

    def forget(self, user: str) -> int:
        """Deletes a person's events and marks them forgotten; gives how many events there were."""
        try:
            with self._engine.begin() as connection:
                self._raise_versions(connection, [user], forgotten=True)
                if self._reuses_numbers:
                    self._note_last_number(connection)
                done = connection.execute(_EVENTS.delete().where(_EVENTS.c.user == user))
        except sa.exc.SQLAlchemyError as error:
            raise _explain(error, "nothing was deleted") from error
        self._must_erase = self._sqlite
        self.erase_forgotten()
        return done.rowcount

    def erase_forgotten(self) -> None:
        """Takes what was forgotten out of SQLite's write-ahead log, where it stands until then.

        Somebody who reads the file can be in the way: to be called again from time to time.
        """
        if not self._must_erase:
            return
        self._must_erase = False  # first: somebody may be forgotten meanwhile
        try:
            with self._engine.connect().execution_options(
                isolation_level="AUTOCOMMIT"
            ) as connection:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={_ERASE_WAIT_MS}")
                try:
                    checkpoint = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                    is_busy = checkpoint.one()[0]
                finally:
                    connection.exec_driver_sql(f"PRAGMA busy_timeout={_WAIT_MS}")
        except sa.exc.SQLAlchemyError:  # the events are deleted, whatever the disk says
            is_busy = True
        if is_busy:
            self._must_erase = True

    def check(self) -> None:
        """Raises StoreError if the log cannot be read now."""
        self._read(sa.select(_META.c.name).limit(1))

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def _read(self, query: sa.Select) -> Sequence[sa.Row]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).all()
        except sa.exc.SQLAlchemyError as error:
            raise _explain(error, "the event log cannot be read") from error

    def _ids(
        self, connection: sa.Connection, ids: list[tuple[str, str]]
    ) -> Iterable[tuple[str, str]]:
        pair = sa.tuple_(_EVENTS.c.user, _EVENTS.c.event_id)
        for part in _parts(ids):
            query = sa.select(_EVENTS.c.user, _EVENTS.c.event_id).where(pair.in_(part))
            yield from (tuple(row) for row in connection.execute(query))

    def _raise_versions(
        self, connection: sa.Connection, users: list[str], *, forgotten: bool
    ) -> None:
        first = self._insert(_PEOPLE)
        changes: dict[str, Any] = {"version": _PEOPLE.c.version + 1}
        if forgotten:
            changes["forgotten"] = True
        upsert = first.on_conflict_do_update(index_elements=["person"], set_=changes)
        rows = [{"version": 1, "forgotten": forgotten, "person": self._person(u)} for u in users]
        connection.execute(upsert, rows)

    def _last_number(self, connection: sa.Connection) -> int:
        """The highest number that an event has or had."""
        newest = connection.execute(sa.select(sa.func.max(_EVENTS.c.sequence))).scalar()
        query = sa.select(_META.c.value).where(_META.c.name == "last_number")
        return max(newest or 0, int(connection.execute(query).scalar() or 0))

    def _note_last_number(self, connection: sa.Connection) -> None:
        value = str(self._last_number(connection))
        note = self._insert(_META).values(name="last_number", value=value)
        change = note.on_conflict_do_update(index_elements=["name"], set_={"value": value})
        connection.execute(change)

    def _person(self, user: str) -> str:
        return hmac.new(self._key, user.encode(), hashlib.sha256).hexdigest()

    def _read_key(self, connection: sa.Connection) -> bytes:
        insert = self._insert(_META).values(name="hash_key", value=secrets.token_hex(32))
        connection.execute(insert.on_conflict_do_nothing())
        query = sa.select(_META.c.value).where(_META.c.name == "hash_key")
        return bytes.fromhex(connection.execute(query).scalar_one())


def _parts(names: list) -> Iterable[list]:
    for first in range(0, len(names), _SELECT_AT_ONCE):
        yield names[first : first + _SELECT_AT_ONCE]


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # a commit is on the disk when it returns
        "secure_delete=ON",  # what is forgotten is overwritten
        f"busy_timeout={_WAIT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _add_numbers(connection: sa.Connection) -> None:
    """Gives a log of before events had numbers their column; older services can still write it."""

    def there() -> bool:
        columns = sa.inspect(connection).get_columns(_EVENTS.name)
        return any(column["name"] == "numbers" for column in columns)

    if there():
        return
    try:
        connection.execute(sa.text("ALTER TABLE events ADD COLUMN numbers JSON"))
    except sa.exc.OperationalError:
        if not there():  # SQLite: another service that starts was quicker
            raise


def _reuses_numbers(connection: sa.Connection) -> bool:
    """Whether an SQLite file gives the numbers of deleted events again: those of before do."""
    query = sa.text("SELECT sql FROM sqlite_master WHERE name = 'events'")
    return "AUTOINCREMENT" not in connection.execute(query).scalar_one()


def _check_sqlite(connection: sa.Connection) -> None:
    found = connection.execute(sa.text("PRAGMA quick_check(1)")).scalar_one()
    if found != "ok":
        raise sa.exc.DatabaseError("PRAGMA quick_check", None, ValueError("quick_check fails"))


def _explain(error: sa.exc.SQLAlchemyError, what: str) -> StoreError:
    reason = str(getattr(error, "orig", None) or type(error).__name__).split("\n")[0]
    hint = "try again later"
    if any(word in reason for word in ("malformed", "not a database", "quick_check", "Tree ")):
        hint = "the file is damaged: restore a copy, or save what is whole with sqlite3 .recover"
    elif "full" in reason or "No space" in reason:
        hint = "make room on the disk and try again"
    return StoreError(f"{what}: {reason}; {hint}")


def default_url(run: str) -> str:
    """The log beside the run: SQLite in its directory."""
    return f"sqlite:///{run}/events.db"


def now_s() -> int:
    """Unix seconds of the service's clock."""
    return int(time.time())
