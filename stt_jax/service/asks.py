"""A request for recommendations, as it leaves the API, and its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from stt_jax.histories import Events
from stt_jax.ranking import Recommendation, Rules, excludes_seen, named_rows
from stt_jax.service.store import StoredEvent

if TYPE_CHECKING:
    from stt_jax.service.models import ServedModel


class RequestError(ValueError):
    """A request is wrong; the message is for who sent it. Any other ValueError is a defect here."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
      user: id; None = nobody that is known.
      trail: events to take for the person's, in the order of their time; None = the stored ones.
      time_s: unix seconds, or local seconds where `time_is_local`; None = unknown, after the last
        event. Events after it are not used.
      utc_offset_s: that `time_s` came with, see `histories.find_moment`; None = none.
      place_e7: (latitude, longitude), 1e-7 degrees; None = unknown.
      traits: what is told of the person, by name, instead of what the log says.
      why: whether to explain the list.
      exclude_seen: leave out what the person has had; None = as the run was validated.
      k, exclude_items, categories, domains, radius_km, max_per_category, diversity: as in
        `ranking.Rules`, by names.
    """

    user: str | None
    trail: tuple[StoredEvent, ...] | None = None
    time_s: int | None = None
    time_is_local: bool = False
    utc_offset_s: int | None = None
    place_e7: tuple[int, int] | None = None
    traits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    why: bool = False
    k: int = 10
    exclude_seen: bool | None = None
    exclude_items: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    radius_km: float = 0.0
    max_per_category: int = 0
    diversity: float = 0.0

    def rules(self, served: ServedModel, events: Events) -> Rules:
        """The rules in rows of the model's vocabularies.

        Raises:
          RequestError: a category or a domain that the model does not know.
        """
        excluded = [served.item_rows[i] for i in self.exclude_items if i in served.item_rows]
        if excludes_seen(served.run, self.exclude_seen):
            excluded += np.unique(events.items).tolist()
        return Rules(
            k=min(self.k, served.log.num_listed),
            excluded=np.array(excluded, np.int64),
            categories=_rows("categories", self.categories, served.category_rows),
            domains=_rows("domains", self.domains, served.domain_rows),
            radius_km=self.radius_km,
            max_per_category=self.max_per_category,
            diversity=self.diversity,
        )


def _rows(what: str, names: tuple[str, ...], rows: Mapping[str, int]) -> np.ndarray | None:
    try:
        return named_rows(what, names, rows)
    except ValueError as error:
        raise RequestError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class Reason:
    """An event that a recommendation points at.

    Attributes:
      time_s, utc_offset_s: of the event.
      share: of the whole answer's probability, that points at this event.
      effects: what the time gap and the distance to it add to its logit.
    """

    time_s: int
    utc_offset_s: int
    share: float
    effects: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The list of one request.

    Attributes:
      items: in the order of the list.
      reasons: for each item the events that it points at; None where not asked for.
      num_events: events of the person that were used.
      time_s, utc_offset_s: of the request; None = unknown.
    """

    items: list[Recommendation]
    reasons: list[list[Reason]] | None
    num_events: int
    time_s: int | None
    utc_offset_s: int
