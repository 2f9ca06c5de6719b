import dataclasses

import numpy as np
import pytest

from stt_jax.data import city_categories, city_law


def random_contexts(city, count, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(city.config.num_users, size=count),
        rng.integers(city.config.num_places, size=count),
        rng.integers(48 * city.config.num_days, size=count),
        rng.integers(1, city_law.MAX_GAP_SLOTS + 1, size=count),
    )


def test_distributions_sum_to_one(city, blind_city):
    for made in (city, blind_city):
        gaps = city_law.gap_probabilities()
        assert gaps.sum(axis=1) == pytest.approx(1)
        assert gaps.min() > 0
        places = city_law.next_place_probabilities(made, *random_contexts(made, 500))
        assert places.sum(axis=1) == pytest.approx(1)
        assert places.min() > 0


def test_place_distribution_is_the_documented_formula(city):
    """One context at a time, term by term, against the vectorised form."""
    contexts = random_contexts(city, 20)
    actual = city_law.next_place_probabilities(city, *contexts)
    for row, (user, previous, slot, gap) in enumerate(zip(*contexts, strict=True)):
        scores, wander = np.zeros(80), np.zeros(80)
        hour = (slot + gap) // 2 - city.user_rhythms_h[user]
        habits = dict(
            zip(city.user_favourites[user], city_categories.FAVOURITE_HABITS, strict=True)
        )
        for place in range(80):
            category = city.place_categories[place]
            kind = city_categories.CATEGORIES[category]
            north_km = 111.195 * (
                city.place_latitudes_deg[place] - city.place_latitudes_deg[previous]
            )
            east_km = (
                111.195
                * np.cos(np.deg2rad(40.73))
                * (city.place_longitudes_deg[place] - city.place_longitudes_deg[previous])
            )
            distance_km = np.hypot(north_km, east_km)
            scores[place] = (
                city.place_appeals[place]
                + city.user_tastes[user, category]
                + habits.get(place, city_law.PRIVATE if kind.private else 0.0)
                + city_categories.SCHEDULE[hour % 168, category]
                - city_law.DISTANCE_POWER * np.log(1 + distance_km / kind.reach_km)
            )
            if place == previous:
                scores[place] -= city_law.REPEAT_PENALTY * np.exp(-gap / city_law.REPEAT_SLOTS)
            if not kind.private:
                wander[place] = (1 + distance_km / city_law.WANDER_KM) ** -city_law.DISTANCE_POWER
        plan = np.exp(scores) / np.exp(scores).sum()
        expected = city_law.EXPLORING * wander / wander.sum() + (1 - city_law.EXPLORING) * plan
        np.testing.assert_allclose(actual[row], expected, rtol=1e-9)


def test_unknown_mode_is_the_sum_over_gaps(city):
    events = np.arange(0, city.num_events, 37)
    users, previous = city.event_users[events], city.event_previous_places[events]
    slots = city.event_slots[events] - city.event_gaps_slots[events]
    expected = np.zeros((len(events), city.config.num_places))
    for gap in range(1, city_law.MAX_GAP_SLOTS + 1):
        chances = city_law.gap_probabilities()[slots % city_law.SLOTS_PER_WEEK, gap - 1]
        gaps = np.full(len(events), gap)
        expected += chances[:, None] * city_law.next_place_probabilities(
            city, users, previous, slots, gaps
        )
    actual = city_law.best_ranking_probabilities(city, events, "unknown")
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("mode", city_law.MODES)
def test_best_ranking_scores_what_is_computed(city, mode):
    """The realised hits of the optimal ranking agree with their expectation, at every k."""
    optimum = city_law.best_possible(city)
    probabilities = city_law.best_ranking_probabilities(city, np.arange(city.num_events), mode)
    chosen = np.take_along_axis(probabilities, city.event_places[:, None], axis=1)
    ranks = (probabilities >= chosen).sum(axis=1)
    for k in city_law.RECALL_KS:
        expected = optimum[f"recall@{k}_{mode}"]
        error = np.sqrt((expected * (1 - expected)).sum()) / city.num_events
        assert abs((ranks <= k).mean() - expected.mean()) < 3 * error
    spread = (1 / ranks).std() / np.sqrt(city.num_events)
    assert abs((1 / ranks).mean() - optimum[f"mrr_{mode}"].mean()) < 3 * spread


def test_probabilities_are_calibrated(city):
    """Among events where the best guess has chance c, a share c of the guesses is right."""
    probabilities = city_law.best_ranking_probabilities(city, np.arange(city.num_events), "known")
    chances, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == city.event_places
    for bin_chances, bin_hits in zip(
        np.array_split(chances[np.argsort(chances)], 8),
        np.array_split(hits[np.argsort(chances)], 8),
        strict=True,
    ):
        error = np.sqrt((bin_chances * (1 - bin_chances)).sum()) / len(bin_chances)
        assert abs(bin_hits.mean() - bin_chances.mean()) < 4 * error


def test_gaps_follow_their_distribution(city):
    """Chi-square over gaps, within four standard deviations of its mean."""
    previous_slots = city.event_slots - city.event_gaps_slots
    chances = city_law.gap_probabilities()[previous_slots % city_law.SLOTS_PER_WEEK]
    observed = np.bincount(city.event_gaps_slots - 1, minlength=chances.shape[1])
    expected = chances.sum(axis=0)
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert abs(statistic - 47) < 4 * np.sqrt(2 * 47)


def test_time_and_place_carry_information(city):
    users, places, slots, gaps = random_contexts(city, 300)
    base = city_law.next_place_probabilities(city, users, places, slots, gaps)
    later = city_law.next_place_probabilities(city, users, places, slots + 12, gaps)
    assert np.abs(base - later).max() > 0.3
    optimum = city_law.best_possible(city)
    assert optimum["recall@1_known"].mean() > optimum["recall@1_unknown"].mean() + 0.15


def test_uninformative_city_ignores_time_and_coordinates(blind_city):
    users, places, slots, gaps = random_contexts(blind_city, 300)
    base = city_law.next_place_probabilities(blind_city, users, places, slots, gaps)
    other_time = city_law.next_place_probabilities(
        blind_city, users, places, slots[::-1], gaps[::-1]
    )
    np.testing.assert_array_equal(base, other_time)
    moved = dataclasses.replace(
        blind_city,
        place_latitudes_deg=blind_city.place_latitudes_deg[::-1],
        place_longitudes_deg=blind_city.place_longitudes_deg[::-1],
    )
    np.testing.assert_array_equal(
        base, city_law.next_place_probabilities(moved, users, places, slots, gaps)
    )
    optimum = city_law.best_possible(blind_city)
    np.testing.assert_allclose(optimum["recall@1_known"], optimum["recall@1_unknown"], rtol=1e-9)


def test_unknown_mode_name_is_refused(city):
    with pytest.raises(ValueError, match="mode must be"):
        city_law.best_ranking_probabilities(city, np.arange(2), "maybe")
