import dataclasses
import inspect

import pytest

from stt_jax import config
from stt_jax.config import (
    ForgetConfig,
    InputOptions,
    ModelConfig,
    PrepareConfig,
    RequestConfig,
    ServeConfig,
    TrainingConfig,
    flagfile,
)

CLASSES = [
    value
    for value in vars(config).values()
    if inspect.isclass(value) and dataclasses.is_dataclass(value)
]
CHOICES = [
    (config_class, field)
    for config_class in CLASSES
    for field in dataclasses.fields(config_class)
    if field.metadata["choices"]
]
# What a config cannot be made without.
NEEDED = {
    InputOptions: {"input": ("log.csv",), "output": "prepared"},
    PrepareConfig: {"input": ("log.csv",), "output": "prepared", "split": "leave_one_out"},
    ForgetConfig: {"data": "prepared", "user": "u1"},
}


@pytest.mark.parametrize(
    ("config_class", "field"),
    CHOICES,
    ids=[f"{config_class.__name__}.{field.name}" for config_class, field in CHOICES],
)
def test_what_is_none_of_the_choices_is_refused_in_the_same_words_everywhere(config_class, field):
    options = NEEDED.get(config_class, {})
    shown = ", ".join(name for name in field.metadata["choices"] if name)
    with pytest.raises(ValueError, match=rf"^--{field.name}=foo must be one of ") as refused:
        config_class(**{**options, field.name: "foo"})
    assert shown in str(refused.value)
    given = [
        f"--{name}={flagfile.flag_text(value)}"
        for name, value in options.items()
        if name != field.name
    ]
    with pytest.raises(ValueError, match=rf"^--{field.name}=foo must be one of ") as told:
        flagfile.parse({"group": config_class}, ["", *given, f"--{field.name}=foo"])
    assert str(told.value) == str(refused.value)


FLOATS = [
    (config_class, field.name)
    for config_class in (TrainingConfig, ModelConfig, ServeConfig)
    for field in dataclasses.fields(config_class)
    if isinstance(field.default, float)
]


@pytest.mark.parametrize(("config_class", "name"), FLOATS, ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_must_be_one(config_class, name, value):
    with pytest.raises(ValueError, match=rf"^--{name}={value} must be a finite number"):
        config_class(**{name: value})


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_one_that_a_key_can_hold(seed):
    with pytest.raises(ValueError, match=rf"^--seed={seed} must be in 0..4294967295$"):
        TrainingConfig(seed=seed)
    TrainingConfig(seed=2**32 - 1)


def test_all_configs_are_looked_at():
    names = {name for name in config.__all__ if name.endswith(("Config", "Options"))}
    assert {config_class.__name__ for config_class in CLASSES} == names


def test_an_empty_choice_is_spelt_out():
    with pytest.raises(ValueError, match=r"must be one of users, users_and_items, or empty$"):
        config.ProtectionOptions(pseudonymise="people")


@pytest.mark.parametrize(
    "name",
    [
        "weight_decay",
        "generate_weight",
        "place_noise_m",
        "validation_targets",
        "patience",
        "keep",
        "checkpoint_every",
        "dp_epsilon",
    ],
)
def test_numbers_that_count_or_weigh_are_not_negative(name):
    with pytest.raises(ValueError, match=f"^--{name}=-1 must not be negative$"):
        TrainingConfig(**{name: -1})
    assert getattr(TrainingConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize(("given", "word"), [(True, "true"), (False, "false"), ("true", "true")])
def test_whether_seen_items_are_left_out_can_be_a_bool(given, word):
    assert RequestConfig(exclude_seen=given) == RequestConfig(exclude_seen=word)
    with pytest.raises(ValueError, match="--exclude_seen=True must be one of as_run, true, false"):
        RequestConfig(exclude_seen="True")
