import dataclasses
import gzip

import numpy as np
import pyarrow as pa
import pytest

from stt_jax.config import CityConfig
from stt_jax.data import synthetic

SMALL = CityConfig(num_users=60, num_places=80, num_days=28, seed=5)


@pytest.fixture(scope="module")
def city():
    return synthetic.generate_city(SMALL)


@pytest.fixture(scope="module")
def blind_city():
    return synthetic.generate_city(dataclasses.replace(SMALL, informative=False))


def random_contexts(city, count, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(city.config.num_users, size=count),
        rng.integers(city.config.num_places, size=count),
        rng.integers(48 * city.config.num_days, size=count),
        rng.integers(1, synthetic.MAX_GAP_SLOTS + 1, size=count),
    )


def test_distributions_sum_to_one(city, blind_city):
    for made in (city, blind_city):
        gaps = synthetic.gap_probabilities()
        assert gaps.sum(axis=1) == pytest.approx(1)
        assert gaps.min() > 0
        places = synthetic.next_place_probabilities(made, *random_contexts(made, 500))
        assert places.sum(axis=1) == pytest.approx(1)
        assert places.min() > 0


def test_place_distribution_is_the_documented_formula(city):
    """One context at a time, term by term, against the vectorised form."""
    contexts = random_contexts(city, 20)
    actual = synthetic.next_place_probabilities(city, *contexts)
    for row, (user, previous, slot, gap) in enumerate(zip(*contexts, strict=True)):
        scores, wander = np.zeros(80), np.zeros(80)
        hour = (slot + gap) // 2 - city.user_rhythms_h[user]
        habits = dict(zip(city.user_favourites[user], synthetic.FAVOURITE_HABITS, strict=True))
        for place in range(80):
            category = city.place_categories[place]
            kind = synthetic.CATEGORIES[category]
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
                + habits.get(place, synthetic.PRIVATE if kind.private else 0.0)
                + synthetic.SCHEDULE[hour % 168, category]
                - synthetic.DISTANCE_POWER * np.log(1 + distance_km / kind.reach_km)
            )
            if place == previous:
                scores[place] -= synthetic.REPEAT_PENALTY * np.exp(-gap / synthetic.REPEAT_SLOTS)
            if not kind.private:
                wander[place] = (1 + distance_km / synthetic.WANDER_KM) ** -synthetic.DISTANCE_POWER
        plan = np.exp(scores) / np.exp(scores).sum()
        expected = synthetic.EXPLORING * wander / wander.sum() + (1 - synthetic.EXPLORING) * plan
        np.testing.assert_allclose(actual[row], expected, rtol=1e-9)


def test_unknown_mode_is_the_sum_over_gaps(city):
    events = np.arange(0, city.num_events, 37)
    users, previous = city.event_users[events], city.event_previous_places[events]
    slots = city.event_slots[events] - city.event_gaps_slots[events]
    expected = np.zeros((len(events), city.config.num_places))
    for gap in range(1, synthetic.MAX_GAP_SLOTS + 1):
        chances = synthetic.gap_probabilities()[slots % synthetic.SLOTS_PER_WEEK, gap - 1]
        gaps = np.full(len(events), gap)
        expected += chances[:, None] * synthetic.next_place_probabilities(
            city, users, previous, slots, gaps
        )
    actual = synthetic.best_ranking_probabilities(city, events, "unknown")
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("mode", synthetic.MODES)
def test_best_ranking_scores_what_is_computed(city, mode):
    """The realised hits of the optimal ranking agree with their expectation, at every k."""
    optimum = synthetic.best_possible(city)
    probabilities = synthetic.best_ranking_probabilities(city, np.arange(city.num_events), mode)
    chosen = np.take_along_axis(probabilities, city.event_places[:, None], axis=1)
    ranks = (probabilities >= chosen).sum(axis=1)
    for k in synthetic.RECALL_KS:
        expected = optimum[f"recall@{k}_{mode}"]
        error = np.sqrt((expected * (1 - expected)).sum()) / city.num_events
        assert abs((ranks <= k).mean() - expected.mean()) < 3 * error
    spread = (1 / ranks).std() / np.sqrt(city.num_events)
    assert abs((1 / ranks).mean() - optimum[f"mrr_{mode}"].mean()) < 3 * spread


def test_probabilities_are_calibrated(city):
    """Among events where the best guess has chance c, a share c of the guesses is right."""
    probabilities = synthetic.best_ranking_probabilities(city, np.arange(city.num_events), "known")
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
    chances = synthetic.gap_probabilities()[previous_slots % synthetic.SLOTS_PER_WEEK]
    observed = np.bincount(city.event_gaps_slots - 1, minlength=chances.shape[1])
    expected = chances.sum(axis=0)
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert abs(statistic - 47) < 4 * np.sqrt(2 * 47)


def test_time_and_place_carry_information(city):
    users, places, slots, gaps = random_contexts(city, 300)
    base = synthetic.next_place_probabilities(city, users, places, slots, gaps)
    later = synthetic.next_place_probabilities(city, users, places, slots + 12, gaps)
    assert np.abs(base - later).max() > 0.3
    optimum = synthetic.best_possible(city)
    assert optimum["recall@1_known"].mean() > optimum["recall@1_unknown"].mean() + 0.15


def test_uninformative_city_ignores_time_and_coordinates(blind_city):
    users, places, slots, gaps = random_contexts(blind_city, 300)
    base = synthetic.next_place_probabilities(blind_city, users, places, slots, gaps)
    other_time = synthetic.next_place_probabilities(
        blind_city, users, places, slots[::-1], gaps[::-1]
    )
    np.testing.assert_array_equal(base, other_time)
    moved = dataclasses.replace(
        blind_city,
        place_latitudes_deg=blind_city.place_latitudes_deg[::-1],
        place_longitudes_deg=blind_city.place_longitudes_deg[::-1],
    )
    np.testing.assert_array_equal(
        base, synthetic.next_place_probabilities(moved, users, places, slots, gaps)
    )
    optimum = synthetic.best_possible(blind_city)
    np.testing.assert_allclose(optimum["recall@1_known"], optimum["recall@1_unknown"], rtol=1e-9)


def test_uninformative_favourites_are_not_near_home(city, blind_city):
    def mean_distance_km(made):
        home, favourites = made.user_favourites[:, 0], made.user_favourites[:, 2:]
        return np.mean(
            [
                np.hypot(
                    made.place_latitudes_deg[home] - made.place_latitudes_deg[column],
                    made.place_longitudes_deg[home] - made.place_longitudes_deg[column],
                )
                for column in favourites.T
            ]
        )

    assert mean_distance_km(city) < 0.8 * mean_distance_km(blind_city)


def test_same_seed_same_bytes_and_other_seed_differs(tmp_path, city):
    synthetic.write_city(city, tmp_path / "a")
    synthetic.write_city(synthetic.generate_city(SMALL), tmp_path / "b")
    other = synthetic.generate_city(dataclasses.replace(SMALL, seed=6))
    synthetic.write_city(other, tmp_path / "c")
    for name in (synthetic.LOG_NAME, synthetic.OPTIMUM_NAME):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()


def test_people_do_not_depend_on_who_else_is_drawn(city):
    """Blocks have streams of their own: more people leave the earlier blocks as they are."""
    many = synthetic.generate_city(dataclasses.replace(SMALL, num_users=300, num_days=7))
    few = synthetic.generate_city(dataclasses.replace(SMALL, num_users=256, num_days=7))
    chosen = many.event_users < 256
    np.testing.assert_array_equal(many.event_places[chosen], few.event_places)
    np.testing.assert_array_equal(many.event_times_s[chosen], few.event_times_s)


def test_written_log_and_optimum_describe_the_same_events(tmp_path, city):
    optimum = synthetic.write_city(city, tmp_path)
    lines = gzip.decompress((tmp_path / synthetic.LOG_NAME).read_bytes()).decode().splitlines()
    assert lines[0] == "user_id,place_id,time,utc_offset_min,latitude,longitude,category,name"
    rows = [line.split(",") for line in lines[1:]]
    assert {len(row) for row in rows} == {8}
    times = np.array([row[2].removesuffix("Z") for row in rows], "datetime64[s]").astype(np.int64)
    assert not np.all(np.diff(times) >= 0), "source order must not be time order"
    with pa.memory_map(str(tmp_path / synthetic.OPTIMUM_NAME)) as source:
        table = pa.ipc.open_file(source).read_all()
    keys = zip(table["user_id"].to_pylist(), table["time_s"].to_pylist(), strict=True)
    assert {(row[0], time) for row, time in zip(rows, times.tolist(), strict=True)} == set(keys)
    assert table.num_rows == city.num_events == len(rows)
    np.testing.assert_array_equal(table["mrr_known"].to_numpy(), optimum["mrr_known"])


def test_events_are_in_order_and_fall_in_their_slots(city):
    same_user = city.event_users[1:] == city.event_users[:-1]
    assert np.all(np.diff(city.event_users) >= 0)
    assert np.all(np.diff(city.event_slots)[same_user] == city.event_gaps_slots[1:][same_user])
    np.testing.assert_array_equal(
        city.event_places[:-1][same_user], city.event_previous_places[1:][same_user]
    )
    np.testing.assert_array_equal(
        (city.event_times_s - synthetic.START_S) // synthetic.SLOT_S, city.event_slots
    )
    assert np.all(np.diff(city.event_times_s)[same_user] > 0)
    assert np.abs(city.place_latitudes_deg - 40.73).max() < 0.3


@pytest.mark.parametrize(("num_users", "num_places"), [(1, 20), (3, 1000), (257, 21)])
def test_any_size(num_users, num_places):
    config = CityConfig(num_users=num_users, num_places=num_places, num_days=7)
    made = synthetic.generate_city(config)
    assert set(made.event_users) == set(range(num_users))
    assert made.place_categories.shape == (num_places,)
    assert set(made.place_categories) == set(range(len(synthetic.CATEGORIES)))
    optimum = synthetic.best_possible(made)
    assert all(values.shape == (made.num_events,) for values in optimum.values())
    assert all(0 < values.min() <= values.max() <= 1 + 1e-9 for values in optimum.values())


@pytest.mark.parametrize("wrong", [{"num_users": 0}, {"num_places": 5}, {"num_days": 1}])
def test_impossible_size_is_refused(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} must be at least"):
        CityConfig(**wrong)


def test_unknown_mode_name_is_refused(city):
    with pytest.raises(ValueError, match="mode must be"):
        synthetic.best_ranking_probabilities(city, np.arange(2), "maybe")
