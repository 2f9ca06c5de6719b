import numpy as np
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data.preparation import prepare_log
from stt_jax.data.traits import (
    encode_item_trait,
    encode_user_trait,
    find_user_trait,
    parse_user_trait,
)


def test_an_item_has_each_of_its_values_once_and_the_frequent_ones_first():
    rows, values = encode_item_trait(["b|a", None, "c| a|a", "", "b|"], "pipe")
    assert values == ["", "a", "b", "c"]
    assert rows.tolist() == [[0, 0], [1, 2], [0, 0], [1, 3], [0, 0], [2, 0]]


def test_without_any_value_a_trait_is_unknown():
    rows, values = encode_item_trait([None, ""], "space")
    assert (rows.tolist(), values) == ([[0], [0], [0]], [""])


def test_numbers_of_people_fall_in_ranges_of_equally_many_in_training():
    texts = [str(age) for age in range(10, 50)] + ["9", "1000", "forty", None, "nan"]
    rows, values = encode_user_trait(texts, 40, 4)
    assert np.bincount(rows[:40]).tolist() == [0, 10, 10, 10, 10]
    assert rows[40:].tolist() == [1, 4, 0, 0, 0]
    assert values[1] == "below 19.75"
    assert values[-1] == "39.25 and above"
    assert (np.diff(rows[:40]) >= 0).all()


def test_ranges_of_one_number_alone_are_one_range():
    rows, values = encode_user_trait(["5", "5", "7"], 2, 3)
    assert (rows.tolist(), values) == ([1, 1, 1], ["", "any"])


def test_names_that_no_trained_person_has_are_unknown():
    rows, values = encode_user_trait(["poet", "baker", "poet", "king"], 3, 0)
    assert (rows.tolist(), values) == ([1, 2, 1, 0], ["", "poet", "baker"])


def test_a_value_that_is_told_is_found_by_name_or_by_range():
    rows, ages = encode_user_trait([str(age) for age in range(10, 50)], 40, 4)
    for age in (10, 19, 20, 29, 35, 49):
        assert find_user_trait(ages, str(age)) == rows[age - 10]
    assert find_user_trait(ages, "-3") == 1
    assert find_user_trait(ages, "1000") == 4
    assert find_user_trait(ages, "39.25 and above") == 4
    assert find_user_trait(ages, "old") == find_user_trait(ages, "nan") == 0
    assert find_user_trait(["", "poet", "baker"], "baker") == 2
    assert find_user_trait(["", "poet"], "king") == find_user_trait(["", "poet"], "3") == 0
    assert find_user_trait(["", "any"], "7") == 1


@pytest.mark.parametrize("first", [10, 1_234_560, 1_300_000_000, 0.1, -7e15])
@pytest.mark.parametrize("step", [1, 1000, 1 / 3])
def test_a_number_that_is_told_falls_where_it_fell_in_training(first, step):
    texts = [str(first + step * i) for i in range(12)]
    rows, values = encode_user_trait(texts, 12, 4)
    assert [find_user_trait(values, text) for text in texts] == rows.tolist()


def test_round_bounds_of_ranges_have_short_names():
    _, values = encode_user_trait(["0", "1300000000", "2600000000"], 3, 2)
    assert values == ["", "below 1300000000", "1300000000 and above"]


@pytest.mark.parametrize(
    ("text", "expected"), [("age:8", ("age", 8)), ("job", ("job", 0)), ("a:b:2", ("a:b", 2))]
)
def test_bins_stand_behind_the_last_colon(text, expected):
    assert parse_user_trait(text) == expected


@pytest.mark.parametrize("text", ["age:1", "age:", "age:x", "age:100001", f"age:{10**22}"])
def test_bins_that_make_no_ranges_are_refused(text):
    with pytest.raises(ValueError, match=f"--user_traits={text}: write COLUMN"):
        parse_user_trait(text)


def test_traits_come_from_the_tables_and_the_most_frequent_text_from_the_log(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user,item,time,brand\na,x,1,acme\na,x,2,best\nb,x,3,best\nb,y,4,\nc,x,1500,best\n"
    )
    (tmp_path / "items.csv").write_text("item,genre\nx,loud;long\ny,long\nz,odd\n")
    (tmp_path / "people.csv").write_text("id,age,job\nc,30,king\na,20,poet\nb,40,poet\n")
    config = dict(
        input=("log.csv",),
        data_root=str(tmp_path),
        output=str(tmp_path / "out"),
        user="user",
        item="item",
        time="time",
        items="items.csv",
        users="people.csv",
        users_key="id",
        item_traits=("genre", "brand"),
        trait_separator="semicolon",
        user_traits=("age:2", "job"),
        test_from="1970-01-01T00:16:40",
        validation_fraction=0.0,
    )
    log = prepare_log(PrepareConfig(**config))
    assert list(log.item_ids) == ["", "x", "y"]
    assert log.item_trait_values == {"genre": ["", "long", "loud"], "brand": ["", "best"]}
    assert log.item_traits["genre"].tolist() == [[0, 0], [1, 2], [1, 0]]
    assert log.item_traits["brand"].tolist() == [[0], [1], [0]]
    # c has no training event: known all the same, but gives no value and no quantile.
    assert list(log.user_ids) == ["a", "b", "c"]
    assert log.user_trait_values == {"age": ["", "below 30", "30 and above"], "job": ["", "poet"]}
    assert {n: c.tolist() for n, c in log.user_traits.items()} == {
        "age": [1, 2, 2],
        "job": [1, 1, 0],
    }
    wrong = config | {"user_traits": ("job:3",), "overwrite": True}
    with pytest.raises(ValueError, match=r"--user_traits=job:3: no number .* leave out :3"):
        prepare_log(PrepareConfig(**wrong))


def test_what_somebody_becomes_later_is_not_known_in_training(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user,item,time,device\n"
        "a,x,1,old\na,y,2,old\na,x,1500,new\na,y,1501,new\na,x,1502,new\n"
        "b,x,3,\nb,y,1500,new\n"
        "c,x,1500,old\nc,y,1501,new\nc,x,1502,new\n"
    )
    config = PrepareConfig(
        input=("log.csv",),
        data_root=str(tmp_path),
        output=str(tmp_path / "out"),
        user="user",
        item="item",
        time="time",
        user_traits=("device",),
        test_from="1970-01-01T00:16:40",
        validation_fraction=0.0,
    )
    log = prepare_log(config)
    assert list(log.user_ids) == ["a", "b", "c"]
    assert log.user_trait_values == {"device": ["", "old"]}
    # b said nothing in training; c, who is not there, is what they are most often: not in training.
    assert log.user_traits["device"].tolist() == [1, 0, 0]
