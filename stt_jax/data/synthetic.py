"""A generated city whose best possible accuracy is known exactly: drawn by its law, and written.

What people do, and what the best possible ranking is, stands in `stt_jax.data.city_law`.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stt_jax.config import CityConfig
from stt_jax.data.city_categories import CATEGORIES, FAVOURITE_HABITS
from stt_jax.data.city_law import (
    CENTRE_DEG,
    DISTANCE_POWER,
    KM_PER_DEGREE_EAST,
    KM_PER_DEGREE_NORTH,
    SLOTS_PER_WEEK,
    City,
    best_possible,
    distances_km,
    gap_probabilities,
    next_place_probabilities,
)

SLOT_S = 1800
UTC_OFFSET_MIN = -300
START_S = 1_704_067_200 - 60 * UTC_OFFSET_MIN  # Monday 2024-01-01 00:00 local time
LOG_NAME = "log.csv.gz"
OPTIMUM_NAME = "optimum.arrow"

_TASTE_SCALE = 0.3
_APPEAL_SCALE = 0.3
# Hours by which a person's rhythm lags behind the city's, and the share of people who have it.
_RHYTHMS_H = (0, 9)
_RHYTHM_SHARES = (0.75, 0.25)
_LOCKSTEP_USERS = 256  # a constant: random streams belong to blocks of this many people


def generate_city(config: CityConfig) -> City:
    """Draws a city. The same config (its seed included) gives the same city.

    People are simulated in lockstep, in blocks with a random stream each, so memory grows with the
    events and not with people times places.
    """
    rng = np.random.default_rng([config.seed, 0])
    city = _draw_places(config, rng)
    blocks = []
    for block, first in enumerate(range(0, config.num_users, _LOCKSTEP_USERS)):
        num_users = min(_LOCKSTEP_USERS, config.num_users - first)
        rng = np.random.default_rng([config.seed, 1 + block])
        people = draw_people(city, num_users, rng)
        events = _simulate(dataclasses.replace(city, **people), rng)
        events["event_users"] += first
        blocks.append(people | events)
    columns: dict[str, Any] = {
        name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]
    }
    return dataclasses.replace(city, **columns)


def write_city(city: City, directory: str | os.PathLike) -> dict[str, np.ndarray]:
    """Writes `log.csv.gz` and `optimum.arrow`; the same city gives the same bytes.

    `log.csv.gz` holds the events in scrambled order: user_id, place_id, time (ISO 8601, UTC),
    utc_offset_min, latitude, longitude, category, name.
    `optimum.arrow` (Arrow IPC file) holds for every event user_id, time_s (unix seconds) and the
    columns of `best_possible`; (user_id, time_s) is unique.

    Returns:
      What `best_possible` returns.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (
        open(directory / LOG_NAME, "wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed,
        io.TextIOWrapper(compressed, encoding="utf-8", newline="") as text,
    ):
        text.write("user_id,place_id,time,utc_offset_min,latitude,longitude,category,name\n")
        text.writelines(_csv_lines(city))
    optimum = best_possible(city)
    user_ids = pa.array(city.user_ids[city.event_users])
    table = pa.table({"user_id": user_ids, "time_s": city.event_times_s, **optimum})
    with pa.ipc.new_file(str(directory / OPTIMUM_NAME), table.schema) as writer:
        writer.write_table(table)
    return optimum


def _draw_places(config: CityConfig, rng: np.random.Generator) -> City:
    """A city of places without people. Every category has at least one place."""
    shares = np.array([category.share for category in CATEGORIES])
    spare = config.num_places - len(CATEGORIES)
    counts = 1 + np.floor(spare * shares / shares.sum() + 1e-9).astype(np.int64)
    counts[0] += config.num_places - counts.sum()
    # Places gather around a few centres.
    num_centres = 5
    centres_km = rng.normal(scale=4.0, size=(num_centres, 2))
    chosen = rng.integers(num_centres, size=config.num_places)
    north_east_km = centres_km[chosen] + rng.normal(scale=1.2, size=(config.num_places, 2))
    latitudes = CENTRE_DEG[0] + north_east_km[:, 0] / KM_PER_DEGREE_NORTH
    longitudes = CENTRE_DEG[1] + north_east_km[:, 1] / KM_PER_DEGREE_EAST
    nothing = np.zeros(0, np.int64)
    return City(
        config=config,
        place_categories=np.repeat(np.arange(len(CATEGORIES)), counts),
        place_latitudes_deg=np.round(latitudes, 7),
        place_longitudes_deg=np.round(longitudes, 7),
        place_appeals=rng.normal(scale=_APPEAL_SCALE, size=config.num_places),
        user_rhythms_h=nothing,
        user_tastes=np.zeros((0, len(CATEGORIES))),
        user_favourites=np.zeros((0, len(FAVOURITE_HABITS)), np.int64),
        event_users=nothing,
        event_places=nothing,
        event_previous_places=nothing,
        event_slots=nothing,
        event_gaps_slots=nothing,
        event_times_s=nothing,
    )


def draw_people(
    city: City,
    num_users: int,
    rng: np.random.Generator,
    *,
    known: np.ndarray | None = None,
    unknown: np.ndarray | None = None,
) -> dict[str, Any]:
    """Latents of a block of people, by name of the field of City.

    Favourites are drawn without repetition in proportion to exp(appeal) and nearness to the
    anchor; if a category has fewer places than favourites, the first ones are favourites twice and
    the habit of the last counts.

    Args:
      city: its places.
      num_users: how many people.
      rng: draws them.
      known: int64 [num_users, F], favourites that they have already; None = none.
      unknown: bool [F], which of `known` are drawn all the same; home and work are not.
    """
    favourites: list[np.ndarray] = []
    for row, category in enumerate(CATEGORIES):
        places = np.flatnonzero(city.place_categories == row)
        taken = np.zeros((num_users, len(places)), bool)
        for anchor, _ in category.favourites:
            keys = city.place_appeals[places] + rng.gumbel(size=taken.shape)
            if np.isfinite(category.reach_km) and city.config.informative:
                apart_km = distances_km(city, favourites[anchor == "work"], places)
                keys -= DISTANCE_POWER * np.log1p(apart_km / category.reach_km)
            chosen = np.argmax(np.where(taken, -np.inf, keys), axis=1)
            if known is not None and unknown is not None and not unknown[len(favourites)]:
                chosen = known[:, len(favourites)] - places[0]
            taken[np.arange(num_users), chosen] = True
            favourites.append(places[chosen])
    return {
        "user_rhythms_h": rng.choice(_RHYTHMS_H, size=num_users, p=_RHYTHM_SHARES),
        "user_tastes": rng.normal(scale=_TASTE_SCALE, size=(num_users, len(CATEGORIES))),
        "user_favourites": np.stack(favourites, axis=1),
    }


def _simulate(city: City, rng: np.random.Generator) -> dict[str, Any]:
    """Events of all people of `city`, by name of the field of City.

    A person joins at a uniformly drawn slot of the first fifth of the period, and stops with the
    first event past its end.
    """
    num_users = len(city.user_rhythms_h)
    users = np.arange(num_users)
    end_slot = 48 * city.config.num_days
    slots = rng.integers(0, max(1, end_slot // 5), size=num_users)
    places = city.user_favourites[:, 0]
    gap_cdf = np.cumsum(gap_probabilities(), axis=1)
    steps: list[tuple[np.ndarray, ...]] = []
    while len(users):
        gaps = 1 + _draw(gap_cdf[slots % SLOTS_PER_WEEK], rng)
        chances = next_place_probabilities(city, users, places, slots, gaps)
        previous, places = places, _draw(np.cumsum(chances, axis=1), rng)
        slots = slots + gaps
        times_s = START_S + SLOT_S * slots + rng.integers(0, SLOT_S, size=len(slots))
        steps.append((users, places, previous, slots, gaps, times_s))
        # Leaving out the event past the end would leave out long gaps, and the gaps of the log
        # would not follow P(g | s).
        alive = slots < end_slot
        users, slots, places = users[alive], slots[alive], places[alive]
    columns = [np.concatenate(column) for column in zip(*steps, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    names = ("users", "places", "previous_places", "slots", "gaps_slots", "times_s")
    return {f"event_{name}": column[order] for name, column in zip(names, columns, strict=True)}


def _draw(cumulated: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column of each row of cumulated probabilities [n, m]."""
    # Scaled by the last column, which rounding leaves a little off one.
    points = rng.random(len(cumulated))[:, None] * cumulated[:, -1:]
    return np.argmax(cumulated > points, axis=1)


def _csv_lines(city: City) -> Iterator[str]:
    categories = [CATEGORIES[row].name for row in city.place_categories]
    tails = [
        f"{UTC_OFFSET_MIN},{latitude:.7f},{longitude:.7f},{category},{category} {row}\n"
        for row, (latitude, longitude, category) in enumerate(
            zip(city.place_latitudes_deg, city.place_longitudes_deg, categories, strict=True)
        )
    ]
    user_ids, place_ids = city.user_ids, city.place_ids
    times = np.datetime_as_string(city.event_times_s.astype("datetime64[s]"), timezone="UTC")
    order = np.random.default_rng([city.config.seed]).permutation(city.num_events)
    for event in order:
        place = city.event_places[event]
        user_id = user_ids[city.event_users[event]]
        yield f"{user_id},{place_ids[place]},{times[event]},{tails[place]}"
