"""Every option of every command: one tree of frozen dataclasses.

The command lines make their flags from these classes (`stt_jax.command`), the library takes the
same objects, and a run writes them back as a flagfile beside its checkpoints. A field is made by
`option`, which carries the sentence that `--help` prints. Checks live in `__post_init__`, so a
wrong value is refused in the library with the words that the command line prints.
"""

from __future__ import annotations

import dataclasses
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


# --- raw log -> prepared log (stt_jax.prepare) ---


# --- the synthetic city (stt_jax.generate) ---


# --- training and evaluation (stt_jax.train, stt_jax.evaluate, stt_jax.recommend) ---
