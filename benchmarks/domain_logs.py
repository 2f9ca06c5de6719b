"""Logs of several domains for `benchmarks.bench_domains`, made of generated and prepared ones."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from benchmarks.raw_log import event_rows, prepare_rows
from stt_jax.data import city_law, synthetic
from stt_jax.data.city_categories import CATEGORIES
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import TEST, TRAIN, VALIDATION

FOOD, REST = "food", "rest"
# Words in the names of Foursquare's categories that are about eating and drinking.
_FOOD_WORDS = re.compile(
    r"restaurant|food|coffee|caf|deli|pizza|burger|bakery|diner|sandwich|ice cream|dessert|bagel|"
    r"donut|steak|bbq|taco|burrito|wings|salad|soup|tea|juice|breakfast|snack|candy|cupcake|bar$|"
    r"pub$|brewery|winery|gastropub|noodle|ramen|sushi|bistro|creperie|buffet"
)


def is_food(category: str) -> bool:
    """Whether people eat or drink there."""
    return bool(_FOOD_WORDS.search(category.lower()))


def event_table(
    log: PreparedLog, domains: np.ndarray, *, person_prefix: str = "", max_train_events: int = 0
) -> pa.Table:
    """The events of a prepared log at known items, as rows of a raw one.

    Args:
      log: a prepared log.
      domains: str [V + 1], of its items.
      person_prefix: before every person's id, so that logs share nobody.
      max_train_events: keeps people, drawn by a fixed seed, up to so many events of the training
        part; 0 = everybody.
    """
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    keep = log.items > 0
    if max_train_events:
        order = np.random.default_rng(0).permutation(log.num_users)
        sizes = np.bincount(users[(log.parts == TRAIN) & keep], minlength=log.num_users)
        chosen = np.zeros(log.num_users, bool)
        chosen[order[np.cumsum(sizes[order]) <= max_train_events]] = True
        keep = keep & chosen[users]
    events = np.flatnonzero(keep)
    items = log.items[events]
    rows = event_rows(log, events).drop_columns(["session"])
    people = pa.array([person_prefix + user for user in rows["user"].to_pylist()])
    # An item's category is of the item, not of the event.
    categories = np.asarray(log.category_values)[log.item_categories[items]]
    return (
        rows.set_column(rows.column_names.index("user"), "user", people)
        .set_column(rows.column_names.index("category"), "category", pa.array(categories))
        .append_column("domain", pa.array(domains[items]))
    )


def prepare_domains(tables: Sequence[pa.Table], folder: pathlib.Path) -> PreparedLog:
    """Prepares rows of `event_table`, with the split that they say."""
    return prepare_rows(pa.concat_tables(tables), folder, domain="domain", keep_duplicates=True)


@dataclasses.dataclass(frozen=True)
class CityDomains:
    """A generated city as two domains, food and the rest.

    Attributes:
      city: what it was made of.
      log: people with both domains train; of the others only the rest is known, and each of their
        targets, one event in food, is asked of a person of its own in the test part.
      targets: int64 [T], rows of events of the city, by the ids of those people in `asked`.
      asked: their ids.
    """

    city: city_law.City
    log: PreparedLog
    targets: np.ndarray
    asked: list[str]


def hidden_categories() -> np.ndarray:
    """bool [number of categories of the city], True for food."""
    return np.array([is_food(category.name) for category in CATEGORIES])


def city_domains(
    city: city_law.City, folder: pathlib.Path, *, share: float, per_person: int
) -> CityDomains:
    """Splits a city: the last fifth of the time is asked, a tenth before it validates.

    Args:
      city: of `synthetic.generate_city`.
      folder: for the log.
      share: of the people, of whom only the rest is known.
      per_person: targets of each of them, drawn from the last fifth.
    """
    rng = np.random.default_rng(0)
    num_users = city.config.num_users
    of_rest_alone = rng.random(num_users) < share
    food = hidden_categories()[city.place_categories[city.event_places]]
    test_from, validate_from = np.quantile(city.event_times_s, [0.8, 0.7])
    parts = np.where(city.event_times_s >= validate_from, VALIDATION, TRAIN)
    whole = ~of_rest_alone[city.event_users] & (city.event_times_s < test_from)
    chosen, names, their_parts = [np.flatnonzero(whole)], [], [parts[whole]]
    names += city.user_ids[city.event_users[whole]].tolist()
    targets, asked = [], []
    late = food & (city.event_times_s >= test_from)
    for user in np.flatnonzero(of_rest_alone):
        mine = np.flatnonzero(city.event_users == user)
        could = mine[late[mine]]
        for number, target in enumerate(rng.permutation(could)[:per_person].tolist()):
            known = mine[~food[mine] & (city.event_times_s[mine] < city.event_times_s[target])]
            asked.append(f"{city.user_ids[user]}~{number}")
            targets.append(target)
            chosen.append(np.append(known, target))
            names += [asked[-1]] * len(chosen[-1])
            their_parts.append(np.full(len(chosen[-1]), TEST))
    events = np.concatenate(chosen)
    places = city.event_places[events]
    categories = np.array([category.name for category in CATEGORIES])[city.place_categories]
    table = pa.table(
        {
            "user": names,
            "item": city.place_ids[places],
            "time": pa.array(city.event_times_s[events]),
            "utc_offset_min": pa.array([synthetic.UTC_OFFSET_MIN] * len(events)),
            "latitude": pa.array(city.place_latitudes_deg[places]),
            "longitude": pa.array(city.place_longitudes_deg[places]),
            "category": categories[places],
            "domain": np.where(food[events], FOOD, REST),
            "part": pa.array(np.concatenate(their_parts).astype(np.int64)),
        }
    )
    return CityDomains(city, prepare_domains([table], folder), np.array(targets), asked)
