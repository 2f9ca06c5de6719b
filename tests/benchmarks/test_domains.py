import numpy as np
import pyarrow.compute as pc
import pytest

from benchmarks.bench_domains import DomainsConfig, _asked, _key, _keys, _unambiguous
from benchmarks.domain_logs import FOOD, REST, city_domains, event_table, is_food, prepare_domains
from stt_jax.config import CityConfig
from stt_jax.data.protocol import find_targets
from stt_jax.data.schema import TEST, TRAIN
from stt_jax.data.synthetic import generate_city
from tests.stt_jax.tiny_logs import random_log

CITY = generate_city(CityConfig(num_users=30, num_places=60, num_days=14))


def test_of_asked_people_nothing_in_the_hidden_domain_is_known(tmp_path):
    made = city_domains(CITY, tmp_path, share=0.3, per_person=2)
    log, targets = made.log, _asked(made)
    assert len(targets) == len(made.asked) > 5
    assert (targets.users >= log.num_train_users).all()
    food = log.domain_values.index(FOOD)
    for index, event in enumerate(made.targets):
        assert log.item_domains[log.items[targets.events[index]]] == food
        assert log.item_ids[log.items[targets.events[index]]] == (
            f"{FOOD}/{CITY.place_ids[CITY.event_places[event]]}"
        )
        context = log.items[targets.context(index)]
        assert len(context)
        assert not (log.item_domains[context] == food).any()
    assert set(np.unique(log.item_domains[log.items[log.parts == TRAIN]])) == {1, 2}


def test_a_table_of_a_log_prepares_to_the_same_events(tmp_path):
    log = random_log(num_users=8, seed=3)
    names = np.array(["", *("ab"[item % 2] for item in range(1, log.num_items + 1))])
    again = prepare_domains([event_table(log, names, person_prefix="x:")], tmp_path)
    known = log.items > 0
    assert again.num_events == known.sum()
    assert sorted(again.user_ids) == sorted(f"x:{user}" for user in log.user_ids)
    for part in (TRAIN, TEST):
        assert (again.parts == part).sum() == (log.parts[known] == part).sum()
    once = _unambiguous(again, find_targets(again, TEST))
    keys = _keys(again, once)
    assert len(keys) == len(set(keys)) > 3


def test_a_cut_keeps_whole_people(tmp_path):
    log = random_log(num_users=8, seed=3)
    table = event_table(log, np.array(["d"] * (log.num_items + 1)), max_train_events=30)
    assert 0 < pc.sum(pc.equal(table["part"], TRAIN)).as_py() <= 30
    for user in set(table["user"].to_pylist()):
        rows = np.flatnonzero(np.asarray(table["user"]) == user)
        row = log.user_row(user)
        mine = log.items[log.user_offsets[row] : log.user_offsets[row + 1]]
        assert len(rows) == (mine > 0).sum()


@pytest.mark.parametrize(
    "name", ["Coffee Shop", "Deli / Bodega", "American Restaurant", "Sports Bar"]
)
def test_food_is_food(name):
    assert is_food(name)
    assert not is_food("Barbershop")
    assert not is_food("Office")
    assert REST != FOOD


def test_a_suite_refuses_logs_that_it_has_no_use_for():
    with pytest.raises(ValueError, match="--suite=nyc does not fit --data="):
        DomainsConfig(suite="nyc")
    with pytest.raises(ValueError, match="--suite=joint does not fit --data=one"):
        DomainsConfig(suite="joint", data=("one",))


def test_a_city_of_another_size_stands_beside_the_usual_one():
    assert _key(DomainsConfig(suite="city")) == "city"
    assert _key(DomainsConfig(suite="city", num_users=2400)) == "city of 2,400 people"
    assert _key(DomainsConfig(suite="nyc", data=("x",), num_users=2400)) == "nyc"
