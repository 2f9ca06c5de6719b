"""Scores -> a list for this person: the best items with names and distances, under rules."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence

import numpy as np

from stt_jax import session
from stt_jax.config import RequestConfig
from stt_jax.data.encodings import EARTH_RADIUS_M, earth_coords
from stt_jax.data.known import model_users, traits_of_user
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.pseudonyms import find_user
from stt_jax.data.schema import DEGREES_TO_E7, UNKNOWN_E7, known_place
from stt_jax.histories import (
    Events,
    Moment,
    Question,
    Tokens,
    anchor,
    find_moment,
    history_rows,
    log_events,
    request_rows,
    wanted_domains,
)
from stt_jax.relations import model_catalogue
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


def recommend_items(run: Run, log: PreparedLog, request: RequestConfig) -> list[Recommendation]:
    """The k most probable next items of a person.

    Args:
      run: a trained model.
      log: the log that it was trained on; the person's history is read from it.
      request: who, when, where, and what the list may hold.

    Returns:
      At most `request.k` items, most probable first; fewer if the rules leave fewer.

    Raises:
      ValueError: an unknown person, trait or category, a key that is not the log's, a time that
        cannot be read or that a log without times cannot use, or a radius where no place is known.
    """
    row = None
    if request.user:
        row = _user_row(log, find_user(log, request.user, request.key_file))
    first, end = (0, 0) if row is None else map(int, log.user_offsets[row : row + 2])
    moment = _request_moment(log, log_events(log, first, end), request.time)
    end = first + moment.num_events
    start = first + session.window_start(
        end - first, run.training.asked_tokens, session.window_hop(run.training)
    )
    encoded = log_events(log, start, end)
    place_e7 = _place_e7(request)
    here = request_place(encoded, place_e7)
    if request.radius_km and here is None:
        raise ValueError(
            "--radius_km needs a place: give --latitude and --longitude, or a person with a "
            "known place in the log"
        )
    coords = item_coords(log)
    wish = {"as_run": None, "true": True, "false": False}[request.exclude_seen]
    rules = Rules(
        k=min(request.k, log.num_listed),
        excluded=np.unique(log.items[first:end]) if excludes_seen(run, wish) else None,
        categories=_rows("categories", log.category_values, request.categories),
        domains=_rows("domains", log.domain_values, request.domains),
        radius_km=request.radius_km,
        max_per_category=request.max_per_category,
        diversity=request.diversity,
    )
    question = Question(
        user=0 if row is None else int(model_users(log, np.array(row))),
        time_s=moment.time_s,
        utc_offset_s=moment.utc_offset_s,
        place_e7=place_e7,
        num_events=len(encoded),
        anchor=anchor(encoded),
        traits=traits_of_user(log, row, dict(text.split("=", 1) for text in request.traits)),
        domains=wanted_domains(log, rules.domains),
    )
    before = int(log.times[start - 1]) if start > first else None
    allowed = allowed_items(rules, log.item_categories, log.item_domains, coords, here)
    items_of_log = model_catalogue(log, run.model_config, live_trends=True)
    scorer = session.item_scorer(run.model, run.params, items_of_log)
    best = _ask(run, scorer, Tokens(encoded, before, question.anchor), question, allowed, log)
    items, probabilities = pick(
        best, rules, log.item_categories, np.asarray(scorer.vectors, np.float32)
    )
    return describe(log, items, probabilities, coords, here)


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


def _ask(
    run: Run,
    scorer: session.ItemScorer,
    tokens: Tokens,
    question: Question,
    allowed: np.ndarray | None,
    log: PreparedLog,
) -> Best:
    cache = session.new_cache(run.model, 1, run.training.asked_tokens)
    rows = np.zeros(1, np.int32)
    if len(tokens.events):
        history = history_rows([tokens], 1, run.training.asked_tokens, has_times=log.meta.has_times)
        cache = session.start(run.model, run.params, cache, rows, history)
    requests = request_rows([question], 1)
    mask = None if allowed is None else allowed[None]

    def best(k: int) -> tuple[np.ndarray, np.ndarray]:
        ranked = session.score(run.model, run.params, scorer, cache, rows, requests, mask, k=k)
        items = np.asarray(ranked.items)[0]
        return items[items > 0], np.asarray(ranked.probabilities)[0][items > 0]

    return best


def _rows(flag: str, values: Sequence[str], names: tuple[str, ...]) -> np.ndarray | None:
    if not names:
        return None
    rows = {name: row for row, name in enumerate(values) if row}
    unknown = [name for name in names if name not in rows]
    if unknown:
        near = ", ".join(list(rows)[:5]) or "none"
        raise ValueError(f"--{flag}: {unknown[0]!r} is none of the log's; it has e.g. {near}")
    return np.array([rows[name] for name in names])


def _place_e7(request: RequestConfig) -> tuple[int, int] | None:
    if not request.latitude:
        return None
    degrees = float(request.latitude), float(request.longitude)
    return known_place(*(round(one * DEGREES_TO_E7) for one in degrees))


def _user_row(log: PreparedLog, user: str) -> int:
    try:
        return log.user_row(user)
    except ValueError as error:
        raise ValueError(
            f"{error}. Give --user one of the log's people, or leave it out for somebody new; "
            "events of new people reach the model through the service (stt_jax.serve)"
        ) from error


def _request_moment(log: PreparedLog, events: Events, text: str) -> Moment:
    """When a request of somebody with these events is; see `find_moment`."""
    if not text:
        return find_moment(events, None)
    if not log.meta.has_times:
        raise ValueError(f"--time={text}: {log.directory} has no times, so leave --time empty")
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"--time={text} is no ISO 8601 time; write 2012-12-22T08:30, with +00:00 for UTC"
        ) from error
    offset = time.utcoffset()
    if offset is None:
        local_s = int(time.replace(tzinfo=datetime.UTC).timestamp())
        return find_moment(events, local_s, is_local=True)
    return find_moment(events, int(time.timestamp()), told_offset_s=round(offset.total_seconds()))
