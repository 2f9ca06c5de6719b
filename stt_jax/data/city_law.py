"""The law by which people move through the generated city, and the best that can be known of it.

People have a home, a work place, a daily rhythm, tastes and favourite places. Time runs in slots of
30 minutes of local time. After an event at place q in slot s a person u

  1. waits g slots, 1 <= g <= 48:
         P(g | s) = activity[hour of s + g] exp(-g / MEAN_GAP) / (the sum of that over all g)
  2. goes to place p with probability
         P(p | u, q, s, g) = EXPLORING wander(p | q) + (1 - EXPLORING) plan(p | u, q, s, g)
     where wander(p | q) ~ (1 + distance(q, p) / WANDER_KM)^-DISTANCE_POWER over all public places,
     and plan(p | u, q, s, g) ~ exp(score(p)) over all places (~: divided by the sum), with
         score(p) =  appeal[p] + taste[u, category of p]            what is popular, what u likes
                   + habit[u, p]                                    home, work, favourites
                   + schedule[category of p, hour of week of s + g - rhythm of u]
                   - DISTANCE_POWER log(1 + distance(q, p) / reach[category of p])
                   - [p = q] REPEAT_PENALTY exp(-g / REPEAT_SLOTS)  not straight back to q

Home and work are reached from everywhere (reach = infinity). Before the first event u is at home.
Within its slot an event falls on a uniformly drawn second, which carries no information.

So the best answer to "where next?" is known. If the request time is known the best ranking sorts
places by P(p | u, q, s, g); if it is unknown, by the sum over g of P(g | s) P(p | u, q, s, g). The
expected recall@k of these rankings is the probability of their first k places. It knows the
person's latent home, tastes and favourites, which a model must infer from the history, so it is an
upper bound for every model.

With `informative=False` the schedule is replaced by its mean over the week, distances count
nothing, not even when favourites are chosen, and the repeat penalty is constant: then time and
place say nothing, and both modes have the same optimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from stt_jax.config import CityConfig
from stt_jax.data.city_categories import CATEGORIES, FAVOURITE_HABITS, SCHEDULE

SLOTS_PER_WEEK = 7 * 48
MAX_GAP_SLOTS = 48
MEAN_GAP_SLOTS = 12.0
REPEAT_PENALTY = 3.0
REPEAT_SLOTS = 6.0
DISTANCE_POWER = 1.5
EXPLORING = 0.12
WANDER_KM = 0.5
PRIVATE = -3.0  # habit for the homes and offices of others

CENTRE_DEG = (40.73, -73.98)
KM_PER_DEGREE_NORTH = 111.195
KM_PER_DEGREE_EAST = KM_PER_DEGREE_NORTH * float(np.cos(np.deg2rad(CENTRE_DEG[0])))

MODES = ("known", "unknown")  # of `data.protocol`, in the order of what is printed and written
RECALL_KS = (1, 5, 10, 20)

_CHUNK_EVENTS = 4096


@dataclasses.dataclass(frozen=True)
class City:
    """Places, people (latent, not in the log) and events. Order of events: by person, then time.

    Attributes:
      config: what the city was generated from.
      place_categories: int64 [V], row in CATEGORIES.
      place_latitudes_deg, place_longitudes_deg: float64 [V].
      place_appeals: float64 [V].
      user_rhythms_h: int64 [U].
      user_tastes: float64 [U, number of categories].
      user_favourites: int64 [U, F], the places where habit[u, p] is FAVOURITE_HABITS [F].
      event_users, event_places, event_previous_places: int64 [N].
      event_slots, event_gaps_slots: int64 [N]. Slots since the first Monday; since the last event.
      event_times_s: int64 [N]. Unix seconds, UTC.
    """

    config: CityConfig
    place_categories: np.ndarray
    place_latitudes_deg: np.ndarray
    place_longitudes_deg: np.ndarray
    place_appeals: np.ndarray
    user_rhythms_h: np.ndarray
    user_tastes: np.ndarray
    user_favourites: np.ndarray
    event_users: np.ndarray
    event_places: np.ndarray
    event_previous_places: np.ndarray
    event_slots: np.ndarray
    event_gaps_slots: np.ndarray
    event_times_s: np.ndarray

    @property
    def num_events(self) -> int:
        """N."""
        return len(self.event_users)

    @property
    def user_ids(self) -> np.ndarray:
        """[U] strings, as in the log."""
        return np.array([f"u{row:06d}" for row in range(self.config.num_users)])

    @property
    def place_ids(self) -> np.ndarray:
        """[V] strings, as in the log."""
        return np.array([f"p{row:06d}" for row in range(self.config.num_places)])


def gap_probabilities() -> np.ndarray:
    """P(g | s): float64 [SLOTS_PER_WEEK, MAX_GAP_SLOTS], column 0 is a gap of one slot."""
    gaps = np.arange(1, MAX_GAP_SLOTS + 1)
    hours = (np.arange(SLOTS_PER_WEEK)[:, None] + gaps) // 2 % 24
    activity = np.where((hours >= 1) & (hours < 6), 0.15, 1.0)
    weights = activity * np.exp(-gaps / MEAN_GAP_SLOTS)
    return weights / weights.sum(axis=1, keepdims=True)


def next_place_probabilities(
    city: City,
    users: np.ndarray,
    previous_places: np.ndarray,
    previous_slots: np.ndarray,
    gaps_slots: np.ndarray,
) -> np.ndarray:
    """P(p | u, q, s, g) for n contexts, as defined at the top of this module.

    Args:
      city: places and people; its events are not used.
      users: int [n], rows of people.
      previous_places: int [n], q.
      previous_slots: int [n], s, in slots since the first Monday, 0:00.
      gaps_slots: int [n], g.

    Returns:
      float64 [n, V], rows sum to one.
    """
    schedule = np.exp(_schedule(city, users, previous_slots + gaps_slots))
    plan = _plan_weights(city, users, previous_places) * schedule[:, city.place_categories]
    plan[np.arange(len(users)), previous_places] *= _repeat_factor(city.config, gaps_slots)
    plan *= (1 - EXPLORING) / plan.sum(axis=1, keepdims=True)
    return plan + EXPLORING * _wander(city, previous_places)


def best_ranking_probabilities(city: City, events: np.ndarray, mode: str) -> np.ndarray:
    """The distribution that the best possible ranking of each event sorts by.

    Args:
      city: a generated city.
      events: int [n], rows of events.
      mode: "known" or "unknown", whether the request time is given.

    Returns:
      float64 [n, V], rows sum to one.

    Raises:
      ValueError: another mode.
    """
    users, previous_places = city.event_users[events], city.event_previous_places[events]
    gaps = city.event_gaps_slots[events]
    slots = city.event_slots[events] - gaps
    if mode == "known":
        return next_place_probabilities(city, users, previous_places, slots, gaps)
    if mode != "unknown":
        raise ValueError(f"mode must be 'known' or 'unknown'; got {mode!r}.")
    # Only the plan depends on the gap, through the schedule of the place's category and, for q
    # alone, through the repeat penalty. So the sum over gaps is taken per category, with q as a
    # category of its own, instead of per place:
    #     plan(p) = weight(p) sum over g of P(g | s) schedule(category of p, g) / Z(g).
    rows = np.arange(len(events))
    all_gaps = np.arange(1, MAX_GAP_SLOTS + 1)
    gap_weights = gap_probabilities()[slots % SLOTS_PER_WEEK]
    weights = _plan_weights(city, users, previous_places)
    schedule = np.exp(_schedule(city, users[:, None], slots[:, None] + all_gaps))
    repeats = _repeat_factor(city.config, all_gaps)
    previous_schedule = schedule[rows, :, city.place_categories[previous_places]]
    category_weights = weights @ np.eye(len(CATEGORIES))[city.place_categories]
    previous_weights = weights[rows, previous_places, None]
    totals = np.einsum("ngc,nc->ng", schedule, category_weights)
    totals += previous_weights * previous_schedule * (repeats - 1)
    factors = np.einsum("ng,ngc->nc", gap_weights / totals, schedule)
    probabilities = weights * factors[:, city.place_categories]
    previous_factors = np.einsum("ng,ng->n", gap_weights / totals, previous_schedule * repeats)
    probabilities[rows, previous_places] = previous_weights[:, 0] * previous_factors
    return (1 - EXPLORING) * probabilities + EXPLORING * _wander(city, previous_places)


def best_possible(city: City) -> dict[str, np.ndarray]:
    """The expected metrics of the best possible ranking, event by event.

    Returns:
      `recall@k_MODE` for k in RECALL_KS, `ndcg@10_MODE` and `mrr_MODE` for MODE known and unknown:
      float64 [N] each. Accuracy@1 is recall@1; the optimum of a set of targets is the mean.
    """
    columns: dict[str, list[np.ndarray]] = {}
    discounts = 1 / np.log2(np.arange(min(10, city.config.num_places)) + 2)
    reciprocals = 1 / np.arange(1, city.config.num_places + 1)
    for events in _chunks(city.num_events):
        for mode in MODES:
            probabilities = best_ranking_probabilities(city, events, mode)
            ordered = np.sort(probabilities, axis=1)[:, ::-1]
            for k in RECALL_KS:
                columns.setdefault(f"recall@{k}_{mode}", []).append(ordered[:, :k].sum(axis=1))
            ndcg = ordered[:, : len(discounts)] @ discounts
            columns.setdefault(f"ndcg@10_{mode}", []).append(ndcg)
            columns.setdefault(f"mrr_{mode}", []).append(ordered @ reciprocals)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def distances_km(city: City, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Straight lines on a flat map around CENTRE_DEG: float64 [starts, ends]."""
    north_deg = city.place_latitudes_deg[starts][:, None] - city.place_latitudes_deg[ends]
    east_deg = city.place_longitudes_deg[starts][:, None] - city.place_longitudes_deg[ends]
    return np.hypot(north_deg * KM_PER_DEGREE_NORTH, east_deg * KM_PER_DEGREE_EAST)


def _plan_weights(city: City, users: np.ndarray, previous_places: np.ndarray) -> np.ndarray:
    """The exponential of the part of the score that no gap changes: [n, V]."""
    rows, inverse = np.unique(users, return_inverse=True)
    habits = np.tile(np.where(_private_mask(city), PRIVATE, 0.0), (len(rows), 1))
    np.put_along_axis(habits, city.user_favourites[rows], FAVOURITE_HABITS[None], axis=1)
    tastes = city.user_tastes[rows][:, city.place_categories]
    weights = np.exp(habits + city.place_appeals + tastes)[inverse]
    if city.config.informative:
        reach_km = np.array([category.reach_km for category in CATEGORIES])
        weights *= _nearness(city, previous_places, reach_km[city.place_categories])
    return weights


def _wander(city: City, previous_places: np.ndarray) -> np.ndarray:
    """wander(p | q): [n, V]."""
    weights = np.tile(np.where(_private_mask(city), 0.0, 1.0), (len(previous_places), 1))
    if city.config.informative:
        weights *= _nearness(city, previous_places, WANDER_KM)
    return weights / weights.sum(axis=1, keepdims=True)


def _nearness(city: City, previous_places: np.ndarray, reach_km: np.ndarray | float) -> np.ndarray:
    """(1 + distance(q, p) / reach)^-DISTANCE_POWER: [n, V]."""
    rows, inverse = np.unique(previous_places, return_inverse=True)
    apart_km = distances_km(city, rows, np.arange(city.config.num_places))
    return ((1 + apart_km / reach_km) ** -DISTANCE_POWER)[inverse]


def _private_mask(city: City) -> np.ndarray:
    """[V], True for homes and offices."""
    return np.array([category.private for category in CATEGORIES])[city.place_categories]


def _schedule(city: City, users: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """schedule[:, hour of week of `slots` - rhythm of `users`]: [..., number of categories]."""
    if not city.config.informative:
        return np.broadcast_to(SCHEDULE.mean(axis=0), (*slots.shape, len(CATEGORIES)))
    return SCHEDULE[(slots // 2 - city.user_rhythms_h[users]) % 168]


def _repeat_factor(config: CityConfig, gaps_slots: np.ndarray) -> np.ndarray:
    fading = np.exp(-gaps_slots / REPEAT_SLOTS)
    return np.exp(-REPEAT_PENALTY * (fading if config.informative else np.full_like(fading, 0.5)))


def _chunks(num_events: int) -> Iterator[np.ndarray]:
    for first in range(0, num_events, _CHUNK_EVENTS):
        yield np.arange(first, min(first + _CHUNK_EVENTS, num_events))
