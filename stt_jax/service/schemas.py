"""What travels over HTTP: bodies of requests and answers, with their limits."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field, StringConstraints

from stt_jax.data.pseudonyms import Ids
from stt_jax.data.schema import DEGREES_TO_E7, known_place
from stt_jax.service.asks import Answer, Ask
from stt_jax.service.store import StoredEvent, content_id

MAX_EVENTS = 1000  # in one body
_MAX_LEAD_S = 86_400  # how far ahead of the service's clock an event may be
_MOST_SECONDS = 1e11  # of a time that is meant in seconds: the year 5138

_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
# A web address is an id, too. With an event's id of 256 characters a person's still fits into an
# entry of an index of PostgreSQL, 2704 bytes.
MAX_ID_BYTES = 1600


def _fits(text: str) -> str:
    if len(text.encode()) > MAX_ID_BYTES:
        raise ValueError(f"an id has at most {MAX_ID_BYTES} bytes in UTF-8")
    return text


Text = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)]
Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID_BYTES, pattern=_PRINTABLE),
    pydantic.AfterValidator(_fits),
]


def _in_seconds(value: Any) -> Any:
    if isinstance(value, int | float) and value > _MOST_SECONDS:
        raise ValueError("unix seconds, not milliseconds")
    return value


# The years 1900 to 2100.
UnixSeconds = Annotated[
    int,
    Field(strict=True, ge=-2_208_988_800, le=4_102_444_800),
    pydantic.BeforeValidator(_in_seconds),
]
IsoTime = Annotated[str, StringConstraints(max_length=40), Field(examples=["2012-12-22T08:30Z"])]


def _kind_of_time(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<seconds>" if isinstance(value, int | float) else None


# What is told of a wrong value is about the one type that it could have been; `_invalid` of
# `stt_jax.service.api` leaves the names in angle brackets out.
Time = Annotated[
    Annotated[UnixSeconds, pydantic.Tag("<seconds>")] | Annotated[IsoTime, pydantic.Tag("<text>")],
    pydantic.Discriminator(
        _kind_of_time,
        custom_error_type="time",
        custom_error_message="write unix seconds or ISO 8601, e.g. 2012-12-22T08:30Z",
    ),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Latitude = Annotated[float, Field(strict=True, ge=-90, le=90, allow_inf_nan=False)]
Longitude = Annotated[float, Field(strict=True, ge=-180, le=180, allow_inf_nan=False)]


class Body(pydantic.BaseModel):
    """A body in which a misspelt name is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Place(Body):
    """Degrees, both or none."""

    latitude: Latitude | None = Field(
        None, description="Degrees. The place 0, 0, of devices without a fix, is taken as unknown."
    )
    longitude: Longitude | None = Field(None, description="Degrees.")

    @pydantic.model_validator(mode="after")
    def _both_or_none(self):
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("latitude and longitude go together; give both or none")
        return self

    @property
    def place_e7(self) -> tuple[int, int] | None:
        """(latitude, longitude) in 1e-7 degrees; None = unknown."""
        if self.latitude is None or self.longitude is None:
            return None
        return known_place(*(round(one * DEGREES_TO_E7) for one in (self.latitude, self.longitude)))


class TrailEvent(Place):
    """Something that somebody did."""

    item: Id = Field(description="Id of the item; one that the model does not know is kept.")
    time: Time | None = Field(
        None,
        description="Unix seconds, or ISO 8601 with a zone; empty = now, so that a request sent "
        "again is another event unless it has an event_id. An offset such as -05:00 is the "
        "person's local time from then on; Z tells none.",
    )
    category: Text | None = Field(None, description="Empty = the item's.")
    context: dict[Text, Text] = Field(
        default_factory=dict, max_length=32, description="Further columns by name."
    )
    numbers: dict[Text, Number] = Field(
        default_factory=dict,
        max_length=32,
        description="Numeric columns by name, as the raw log has them: they are scaled as the "
        "prepared log was. What is left out is unknown.",
    )

    def stored(self, ids: Ids, now_s: int) -> StoredEvent:
        """The event as it is kept: with the ids of the prepared log.

        Raises:
          ValueError: a time without a zone, or far ahead of the clock.
        """
        return self._stored(ids, now_s, "", None)

    def _stored(self, ids: Ids, now_s: int, user: str, event_id: str | None) -> StoredEvent:
        time_s, offset_s = now_s, None
        if self.time is not None:
            time_s, offset_s, local = read_time(self.time)
            if local:
                raise ValueError("time: an event's time needs a zone, e.g. 2012-12-22T08:30-05:00")
        if time_s > now_s + _MAX_LEAD_S:
            raise ValueError("time: the event is more than a day ahead of the service's clock")
        latitude, longitude = self.place_e7 or (None, None)
        event = StoredEvent(
            ids.user(user), event_id or "", ids.item(self.item), time_s, offset_s,
            latitude, longitude, self.category, dict(sorted(self.context.items())),
            dict(sorted(self.numbers.items())),
        )  # fmt: skip
        if event_id:
            return event
        return StoredEvent(**{**event.__dict__, "event_id": content_id(event)})


class Event(TrailEvent):
    """Something that a person did."""

    user: Id = Field(description="Id of the person.")
    event_id: Text | None = Field(
        None,
        description="Sent again under the same id, an event is stored once. Empty = made of the "
        "event's content with its time, so equal events are one; whoever sends none and no time "
        "either gets another event with every retry.",
    )

    def stored(self, ids: Ids, now_s: int) -> StoredEvent:
        """See `TrailEvent.stored`."""
        return self._stored(ids, now_s, self.user, self.event_id)


class Events(Body):
    """Many events; all are stored or none."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS)]

    def stored(self, ids: Ids, now_s: int) -> list[StoredEvent]:
        """See `TrailEvent.stored`."""
        return _all_stored(self.events, ids, now_s, "events")


def _kind_of_events(value: Any) -> str:
    is_many = isinstance(value, Events) or (isinstance(value, dict) and "events" in value)
    return "<many>" if is_many else "<one>"


OneOrMany = Annotated[
    Annotated[Event, pydantic.Tag("<one>")] | Annotated[Events, pydantic.Tag("<many>")],
    pydantic.Discriminator(_kind_of_events),
]


class Stored(pydantic.BaseModel):
    """All events of the body are durable now."""

    stored: int = Field(description="Events that were new.")
    duplicates: int = Field(description="Events that were there already.")


class RecommendBody(Place):
    """Who, when and where, and what the list may hold."""

    user: Id | None = Field(None, description="Id of the person; empty = nobody that is known.")
    trail: Annotated[list[TrailEvent], Field(max_length=MAX_EVENTS)] | None = Field(
        None, description="Events to take for a person's instead of stored ones; not kept."
    )
    time: Time = Field(
        "last",
        description="now; last = unknown, after the person's last event; unix seconds; or ISO "
        "8601. Events after it are not used. Local time is where the person's last event before it "
        "was, or else the first; an offset such as -05:00 says which moment is meant, and is the "
        "local time only of somebody whose events told none. Without a zone it is local time, "
        "compared with that of each event; an hour that occurs twice is the later one.",
    )
    traits: dict[Text, Text] = Field(
        default_factory=dict,
        max_length=32,
        description="What is known of the person, e.g. of somebody new.",
    )
    k: Annotated[int, Field(strict=True, ge=1, le=200)] = 10
    exclude_seen: bool | None = Field(
        None,
        description="Leave out what the person has had; null = if the model was validated so.",
    )
    exclude_items: Annotated[list[Id], Field(max_length=10_000)] = Field(default_factory=list)
    categories: Annotated[list[Text], Field(max_length=1000)] = Field(default_factory=list)
    domains: Annotated[list[Text], Field(max_length=1000)] = Field(
        default_factory=list, description="Only items of these domains; empty = all."
    )
    radius_km: Annotated[float, Field(ge=0, le=30_000, allow_inf_nan=False)] = 0.0
    max_per_category: Annotated[int, Field(strict=True, ge=0, le=200)] = 0
    diversity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    why: bool = Field(False, description="Say which events each item points at.")

    def ask(self, ids: Ids, now_s: int) -> Ask:
        """The request as the service takes it.

        Raises:
          ValueError: a time that cannot be read, or both a user and a trail.
        """
        if self.user is not None and self.trail is not None:
            raise ValueError("user and trail exclude each other; give one of them")
        trail = None
        if self.trail is not None:
            events = _all_stored(self.trail, ids, now_s, "trail")
            trail = tuple(sorted(events, key=lambda event: event.time_s))
        time_s = offset_s = None
        local = False
        if self.time == "now":
            time_s = now_s
        elif self.time != "last":
            time_s, offset_s, local = read_time(self.time)
        return Ask(
            user=None if self.user is None else ids.user(self.user),
            trail=trail,
            time_s=time_s,
            time_is_local=local,
            utc_offset_s=offset_s,
            place_e7=self.place_e7,
            traits=self.traits,
            why=self.why,
            k=self.k,
            exclude_seen=self.exclude_seen,
            exclude_items=tuple(ids.item(item) for item in self.exclude_items),
            categories=tuple(self.categories),
            domains=tuple(self.domains),
            radius_km=self.radius_km,
            max_per_category=self.max_per_category,
            diversity=self.diversity,
        )


class Reason(pydantic.BaseModel):
    """An event of the person that an item of the list points at."""

    time: str = Field(description="Of the event, local to it.")
    share: float = Field(description="Of the whole answer's probability, what points there.")
    effects: dict[str, float] = Field(
        description="What the time gap and the distance to the event add to its logit."
    )


class Item(pydantic.BaseModel):
    """One place of the list."""

    item: str
    name: str
    category: str = Field(description="Empty = unknown.")
    probability: float = Field(description="That this item comes next, over the whole catalogue.")
    distance_km: float | None
    why: list[Reason] | None = None


class Recommended(pydantic.BaseModel):
    """The list, and what it was made from."""

    items: list[Item]
    num_events: int = Field(description="Events of the person that were used.")
    time: str | None = Field(description="Of the request, local; empty = unknown.")
    model_step: int

    @classmethod
    def of(cls, answer: Answer, model_step: int) -> Recommended:
        """The answer as it travels."""
        offset_s = answer.utc_offset_s
        items = [Item(item=one.item_id, **_but_id(one)) for one in answer.items]
        for item, reasons in zip(items, answer.reasons or (), strict=bool(answer.reasons)):
            item.why = [
                Reason(time=iso_time(r.time_s, r.utc_offset_s), share=r.share, effects=r.effects)
                for r in reasons
            ]
        when = None if answer.time_s is None else iso_time(answer.time_s, offset_s)
        return cls(items=items, num_events=answer.num_events, time=when, model_step=model_step)


class KnownEvent(pydantic.BaseModel):
    """A stored event."""

    event_id: str
    item: str
    time: str
    latitude: float | None
    longitude: float | None
    category: str | None
    context: dict[str, str]
    numbers: dict[str, float]


class User(pydantic.BaseModel):
    """What is known of a person."""

    user: str
    in_training: bool = Field(description="The model was trained with this person.")
    num_log_events: int = Field(description="Events in the prepared log.")
    num_events: int = Field(description="Events that came to the service.")
    events: list[KnownEvent] = Field(description="The last 1000 of those, newest last.")


class Forgotten(pydantic.BaseModel):
    """The person is unknown now."""

    deleted_events: int


class Problem(pydantic.BaseModel):
    """Why there is no answer."""

    detail: str


def _all_stored(
    events: Sequence[TrailEvent], ids: Ids, now_s: int, field: str
) -> list[StoredEvent]:
    """`stored` of each; what is wrong with one is said with its place in `field`."""
    found = []
    for number, event in enumerate(events):
        try:
            found.append(event.stored(ids, now_s))
        except ValueError as error:
            raise ValueError(f"{field}.{number}.{error}") from None
    return found


def read_time(value: int | str) -> tuple[int, int | None, bool]:
    """Seconds, the UTC offset in seconds (None = not told), and whether they are local time.

    Unix seconds and times that end in Z are moments that tell no local time; a time without a zone
    is local.

    Raises:
      ValueError: a text that is no time of the years 1900 to 2100.
    """
    if isinstance(value, int):
        return value, None, False
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("time: write ISO 8601, e.g. 2012-12-22T08:30, or unix seconds") from None
    if not 1900 <= moment.year < 2100:
        raise ValueError("time: must be of the years 1900 to 2099")
    offset = moment.utcoffset()
    if offset is None:
        return int(moment.replace(tzinfo=datetime.UTC).timestamp()), None, True
    told = not value.endswith(("Z", "z"))
    return int(moment.timestamp()), int(offset.total_seconds()) if told else None, False


def iso_time(time_s: int, utc_offset_s: int | None) -> str:
    """ISO 8601 in local time with its offset."""
    zone = datetime.timezone(datetime.timedelta(seconds=utc_offset_s or 0))
    return datetime.datetime.fromtimestamp(time_s, zone).isoformat()


def _but_id(one) -> dict:
    return {name: value for name, value in one.__dict__.items() if name != "item_id"}
