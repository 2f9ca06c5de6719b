import dataclasses
import gzip

import numpy as np
import pyarrow as pa
import pytest

from stt_jax.config import CityConfig
from stt_jax.data import city_categories, city_law, synthetic
from tests.stt_jax.data.small_city import SMALL


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
    assert set(made.place_categories) == set(range(len(city_categories.CATEGORIES)))
    optimum = city_law.best_possible(made)
    assert all(values.shape == (made.num_events,) for values in optimum.values())
    assert all(0 < values.min() <= values.max() <= 1 + 1e-9 for values in optimum.values())


@pytest.mark.parametrize("wrong", [{"num_users": 0}, {"num_places": 5}, {"num_days": 1}])
def test_impossible_size_is_refused(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} must be at least"):
        CityConfig(**wrong)
