"""The generated city as two domains: how well can one be known from the other?

Whoever has only seen a person in some categories of the city may know their home, work place,
rhythm and all that they do there, but not their tastes and favourites in the categories that are
hidden. `best_without` ranks as well as that allows: it takes the mean over what the hidden tastes
and favourites may be, drawn as the city draws them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stt_jax.data.city_categories import CATEGORIES
from stt_jax.data.city_law import City, best_ranking_probabilities
from stt_jax.data.synthetic import draw_people


def best_without(
    city: City, events: np.ndarray, mode: str, hidden: np.ndarray, *, num_draws: int, seed: int = 0
) -> np.ndarray:
    """The distribution to rank by for who knows nothing of a person in the hidden categories.

    Args:
      city: a generated city.
      events: int [n], rows of events.
      mode: as in `city_law.best_ranking_probabilities`.
      hidden: bool [number of categories].
      num_draws: of tastes and favourites, which are averaged over.
      seed: of these draws.

    Returns:
      float64 [n, V], rows sum to one.
    """
    people, users = np.unique(city.event_users[events], return_inverse=True)
    rng = np.random.default_rng([seed, 0xD0])
    tastes, favourites = city.user_tastes[people], city.user_favourites[people]
    hidden_favourites = np.repeat(hidden, [len(category.favourites) for category in CATEGORIES])
    # Events of the city with these people alone, numbered from 0.
    events_of = {
        field.name: getattr(city, field.name)[events]
        for field in dataclasses.fields(City)
        if field.name.startswith("event_")
    } | {"event_users": users}
    total = np.zeros((len(events), city.config.num_places))
    for _ in range(num_draws):
        drawn = draw_people(city, len(people), rng, known=favourites, unknown=hidden_favourites)
        imagined = dataclasses.replace(
            city,
            **events_of,
            user_rhythms_h=city.user_rhythms_h[people],
            user_tastes=np.where(hidden, drawn["user_tastes"], tastes),
            user_favourites=drawn["user_favourites"],
        )
        total += best_ranking_probabilities(imagined, np.arange(len(events)), mode)
    return total / num_draws
