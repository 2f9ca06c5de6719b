"""Scores -> a list for this person: the best items with names and distances, under rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stt_jax.data.encodings import EARTH_RADIUS_M, earth_coords
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import UNKNOWN_E7
from stt_jax.histories import Events
from stt_jax.training.run import Run

_SPARE = 4  # candidates a place of the list that rules may pass over, before more are fetched
_MOST_VARIED = 256  # candidates that diversity compares with each other

# The k best allowed items and their probabilities, fewer if fewer are allowed.
Best = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One place of a list.

    Attributes:
      item_id, name, category: as in the log; category "" = unknown.
      probability: that this item comes next, over the whole catalogue.
      distance_km: great-circle, from the request's place or else the last known one; None =
        unknown.
    """

    item_id: str
    name: str
    category: str
    probability: float
    distance_km: float | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a list may hold; items, categories and domains are rows of the vocabularies.

    Attributes:
      k: length of the list.
      excluded: items that are left out.
      categories: only items of these; None = all.
      domains: only items of these; None = all.
      radius_km: only items within this distance, 0 = all; an item without a place is out.
      max_per_category: most items of one known category, 0 = any number.
      diversity: in 0..1; 0 = by probability alone, see `pick`.
    """

    k: int = 10
    excluded: np.ndarray | None = None
    categories: np.ndarray | None = None
    domains: np.ndarray | None = None
    radius_km: float = 0.0
    max_per_category: int = 0
    diversity: float = 0.0


def allowed_items(
    rules: Rules,
    item_categories: np.ndarray,
    item_domains: np.ndarray,
    coords: np.ndarray,
    here: np.ndarray | None,
) -> np.ndarray | None:
    """bool [V + 1], what the rules let into a list; None = everything.

    Args:
      rules: see `Rules`.
      item_categories, item_domains: int32 [V + 1].
      coords: of `item_coords`.
      here: float64 [3], where the request is; needed for a radius only.
    """
    excluded = rules.excluded is not None and len(rules.excluded) > 0
    named = rules.categories is not None or rules.domains is not None
    if not excluded and not named and not rules.radius_km:
        return None
    allowed = np.arange(len(item_categories)) > 0
    if rules.excluded is not None:
        allowed[rules.excluded] = False
    if rules.categories is not None:
        allowed &= np.isin(item_categories, rules.categories)
    if rules.domains is not None:
        allowed &= np.isin(item_domains, rules.domains)
    if rules.radius_km:
        assert here is not None
        allowed &= (
            item_distances_km(coords, here) <= rules.radius_km
        )  # False where the item's place is unknown
    return allowed


def num_candidates(rules: Rules, num_items: int) -> int:
    """How many of the best items to fetch first, so that the rules seldom need more."""
    if rules.diversity:
        return min(max(_MOST_VARIED, rules.k), num_items)
    return min(rules.k * (_SPARE if rules.max_per_category else 1), num_items)


def best_of_fetched(
    fetched: tuple[np.ndarray, np.ndarray],
    num_fetched: int,
    fetch_all: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> Best:
    """The `Best` of a request whose `num_fetched` best items are there already.

    Where `pick` wants more, which is rare, all are fetched, so that few sizes are compiled.
    """

    def best(k: int) -> tuple[np.ndarray, np.ndarray]:
        items, probabilities = fetched if k <= num_fetched else fetch_all()
        return items[:k], probabilities[:k]

    return best


def pick(
    best: Best, rules: Rules, item_categories: np.ndarray, item_vectors: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The list: (items, probabilities), at most `rules.k`.

    Without diversity the most probable items that the cap allows, ties by row. With diversity d
    one after the other the item with the largest

        (1 - d) p / p_max - d max(cosine to those that are in the list)

    among the most probable 256 (maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).

    Args:
      best: fetches candidates; called again for more where the cap passes over many.
      rules: see `Rules`.
      item_categories: int32 [V + 1].
      item_vectors: float32 [rows, E], rows of the catalogue; needed for diversity only.
    """
    wanted = num_candidates(rules, len(item_categories) - 1)
    while True:
        items, probabilities = best(wanted)
        chosen = _choose(items, probabilities, rules, item_categories, item_vectors)
        # Fewer than asked for means that there are no more.
        if len(chosen) == rules.k or len(items) < wanted or wanted == len(item_categories) - 1:
            return items[chosen], probabilities[chosen]
        wanted = min(8 * wanted, len(item_categories) - 1)


def _choose(
    items: np.ndarray,
    probabilities: np.ndarray,
    rules: Rules,
    item_categories: np.ndarray,
    item_vectors: np.ndarray | None,
) -> np.ndarray:
    """Positions among the candidates."""
    order = np.lexsort((items, -probabilities))
    if not rules.max_per_category and not rules.diversity:
        return order[: rules.k]
    relevance = probabilities[order] / max(float(probabilities.max(initial=0)), 1e-30)
    vectors = None
    similarity = np.zeros(len(order))
    if rules.diversity:
        assert item_vectors is not None
        vectors = item_vectors[items[order]]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    left = np.ones(len(order), bool)
    chosen: list[int] = []
    taken: dict[int, int] = {}
    while len(chosen) < rules.k and left.any():
        scores = relevance
        if vectors is not None:
            scores = (1 - rules.diversity) * relevance - rules.diversity * similarity
        at = int(np.argmax(np.where(left, scores, -np.inf)))
        left[at] = False
        category = int(item_categories[items[order[at]]])
        if rules.max_per_category and category:
            if taken.get(category, 0) >= rules.max_per_category:
                continue
            taken[category] = taken.get(category, 0) + 1
        if vectors is not None:
            near = vectors @ vectors[at]
            similarity = np.maximum(similarity, near) if chosen else near
        chosen.append(at)
    return order[chosen]


def excludes_seen(run: Run, wish: bool | None) -> bool:
    """Whether a list leaves out what the person has had; None = as the run was validated."""
    return run.protocol.seen == "leave_out" if wish is None else wish


def named_rows(what: str, names: Sequence[str], rows: Mapping[str, int]) -> np.ndarray | None:
    """Rows of names that a request gives, int64; None where it gives none.

    Args:
      what: what the request calls them, for the error.
      names: as in the log.
      rows: by name, of all that there are.

    Raises:
      ValueError: a name that is not among them.
    """
    for name in names:
        if name not in rows:
            near = ", ".join([known for known in rows if known][:5]) or "none"
            raise ValueError(f"{what}: {name!r} is not in the model's log; it has e.g. {near}")
    return np.array([rows[name] for name in names], np.int64) if names else None


def describe(
    log: PreparedLog,
    items: np.ndarray,
    probabilities: np.ndarray,
    coords: np.ndarray,
    here: np.ndarray | None,
) -> list[Recommendation]:
    """The items of a list as they are shown; distances are found for these alone.

    Args:
      log: whose the items are.
      items, probabilities: [K], of the list.
      coords: of `item_coords`.
      here: float64 [3], where the request is; None = unknown.
    """
    distances_km = np.full(len(items), np.nan)
    if here is not None:
        distances_km = item_distances_km(coords[items], here)
    return [
        Recommendation(
            log.item_ids[item],
            log.item_names[item],
            log.category_values[log.item_categories[item]],
            probability,
            None if np.isnan(distance_km) else distance_km,
        )
        for item, probability, distance_km in zip(
            items.tolist(), probabilities.tolist(), distances_km.tolist(), strict=True
        )
    ]


def item_coords(log: PreparedLog) -> np.ndarray:
    """float64 [V + 1, 3], earth-centred metres, NaN = no place."""
    return earth_coords(log.item_latitudes_e7, log.item_longitudes_e7)


def request_place(events: Events, place_e7: tuple[int, int] | None) -> np.ndarray | None:
    """float64 [3], where a request is, or else the last known place of the events; None = unknown.

    Distances and radii count from here.
    """
    if place_e7 is not None:
        return earth_coords(*(np.asarray(degrees, np.int64) for degrees in place_e7))
    latitudes_e7, longitudes_e7 = events.latitudes_e7, events.longitudes_e7
    known = np.flatnonzero((latitudes_e7 != UNKNOWN_E7) & (longitudes_e7 != UNKNOWN_E7))[-1:]
    return earth_coords(latitudes_e7[known], longitudes_e7[known])[0] if len(known) else None


def item_distances_km(coords: np.ndarray, here: np.ndarray) -> np.ndarray:
    """float64 [N], great-circle distances of places [N, 3] from one, NaN = unknown."""
    chords = np.linalg.norm(coords - here, axis=-1)
    return 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(chords / (2 * EARTH_RADIUS_M), 1)) / 1000
