import dataclasses

import numpy as np

from stt_jax.config import CityConfig
from stt_jax.data.city_categories import CATEGORIES
from stt_jax.data.city_law import best_ranking_probabilities
from stt_jax.data.synthetic import generate_city
from stt_jax.data.synthetic_domains import best_without

CITY = generate_city(CityConfig(num_users=40, num_places=80, num_days=10))
EVENTS = np.arange(0, CITY.num_events, 7)
FOOD = np.array([name.split()[0] in ("Coffee", "Deli", "Restaurant", "Bar") for name in
                 (category.name for category in CATEGORIES)])  # fmt: skip


def test_with_nothing_hidden_it_is_the_best_ranking():
    nothing = np.zeros(len(CATEGORIES), bool)
    found = best_without(CITY, EVENTS, "known", nothing, num_draws=2)
    expected = best_ranking_probabilities(CITY, EVENTS, "known")
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_what_is_hidden_costs_accuracy_there_and_little_elsewhere():
    found = best_without(CITY, EVENTS, "known", FOOD, num_draws=30)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    whole = best_ranking_probabilities(CITY, EVENTS, "known")
    places = CITY.event_places[EVENTS]
    food = FOOD[CITY.place_categories[places]]
    hits = [(scores.argmax(axis=1) == places) for scores in (found, whole)]
    assert hits[0][food].mean() < hits[1][food].mean() - 0.1
    assert abs(hits[0][~food].mean() - hits[1][~food].mean()) < 0.1


def test_hidden_favourites_do_not_shine_through():
    """Whoever's favourites are hidden is answered as anybody with that home, work and rhythm."""
    swapped = CITY.user_favourites.copy()
    hidden = np.repeat(FOOD, [len(category.favourites) for category in CATEGORIES])
    swapped[:, hidden] = swapped[0, hidden]
    other = dataclasses.replace(CITY, user_favourites=swapped)
    found = [best_without(city, EVENTS, "unknown", FOOD, num_draws=3) for city in (CITY, other)]
    np.testing.assert_array_equal(*found)
