"""What a model knows of a log's items and people: ids, categories, places, traits, domains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stt_jax.batch import Catalogue, table_rows
from stt_jax.data.encodings import earth_coords
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.traits import find_user_trait


def catalogue(log: PreparedLog) -> Catalogue:
    """The items of a log as the model sees them."""
    rows = table_rows(log.num_items)
    categories = np.zeros(rows, np.int32)
    categories[: log.num_items + 1] = log.item_categories
    coords = np.full((rows, 3), np.nan, np.float32)
    coords[: log.num_items + 1] = earth_coords(log.item_latitudes_e7, log.item_longitudes_e7)
    traits = {
        name: np.pad(values, ((0, rows - len(values)), (0, 0)))
        for name, values in log.item_traits.items()
    }
    is_item = np.zeros(rows, bool)
    is_item[: log.num_items + 1] = log.is_item
    num_forgotten = len(log.meta.forgotten_items)
    return Catalogue(is_item, categories, coords, traits, num_forgotten=num_forgotten)


def one_domain(log: PreparedLog, items: np.ndarray) -> np.ndarray:
    """bool [N, D], True for the domain of each item; an unknown item may be of any."""
    domains = log.item_domains[items][:, None]
    return (domains == np.arange(1, len(log.domain_values))) | (domains == 0)


def model_users(log: PreparedLog, users: np.ndarray) -> np.ndarray:
    """int32, the model's id of user rows: row + 1, or 0 for people without training events."""
    return np.where(users < log.num_train_users, users + 1, 0).astype(np.int32)


def traits_of_user(
    log: PreparedLog, row: int | None, told: Mapping[str, str] | None = None
) -> dict[str, int]:
    """What is known of a person by name, 0 = unknown.

    Args:
      log: whose traits they are.
      row: of the person; None = not in the log.
      told: trait -> value as in the raw log, instead of what the log says.

    Raises:
      ValueError: the log has no such trait, or nobody in training had that value.
    """
    traits = {
        name: 0 if row is None else int(values[row]) for name, values in log.user_traits.items()
    }
    for name, text in (told or {}).items():
        if name not in traits:
            has = ", ".join(traits) or "none"
            raise ValueError(f"traits: {name!r} is no trait of people of this log; it has {has}")
        traits[name] = find_user_trait(log.user_trait_values[name], text)
        if not traits[name]:
            known = ", ".join(log.user_trait_values[name][1:6])
            raise ValueError(f"traits: nobody in training had {name}={text}; there were {known}")
    return traits
