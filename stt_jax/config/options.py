"""A field that is also a flag, and the checks that every `__post_init__` uses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
      default: the value when the flag is not given. A tuple makes a comma-separated list flag.
      help: one sentence for `--help`, with the unit where there is one.
      choices: the allowed values of a string option.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition`; used by every `__post_init__`."""
    if not condition:
        raise ValueError(message)


def check_choices(config: Any) -> None:
    """Raises ValueError where an option is none of its choices; first in every `__post_init__`."""
    for field in dataclasses.fields(config):
        choices, value = field.metadata.get("choices"), getattr(config, field.name)
        if choices:
            check(
                value in choices, f"--{field.name}={value} must be one of {choices_text(choices)}"
            )


def choices_text(choices: tuple[str, ...]) -> str:
    """The choices for people to read."""
    names = ", ".join(name for name in choices if name)
    return names if all(choices) else f"{names}, or empty"


def check_finite(config: Any) -> None:
    """Raises ValueError where an option that is a number is infinite or none."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float):
            check(math.isfinite(value), f"--{field.name}={value} must be a finite number")


def check_limit(config: Any, name: str, largest: float) -> None:
    """Raises ValueError unless the option `name` is 0 to `largest`; NaN is not."""
    value = getattr(config, name)
    check(
        0 <= value <= largest,
        f"--{name} must be 0 or more and at most {largest:,.0f}; got {value}",
    )
