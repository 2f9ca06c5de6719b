"""Config dataclasses as flags and flagfiles: read from a command line, and written back.

Each dataclass becomes a group of absl flags in a FlagValues of its own, so nothing is defined
globally and several commands can run in one process.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from stt_jax.config.options import check_choices


def parse(groups: Mapping[str, type], argv: Sequence[str]) -> dict[str, Any]:
    """Flags in `argv` (program name first, `--flagfile` expanded) as one config a group.

    Raises:
      ValueError: an unknown flag (names the nearest), a word that is no flag, a value of the
        wrong type, a missing flagfile, or a value that a config refuses.
    """
    values = _flag_values(groups)
    try:
        rest = values([argv[0], *_flagfiles_first(argv[1:])])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        hint = f"; did you mean --{near[0]}?" if near else "; --help lists the flags"
        raise ValueError(f"unknown flag --{error.flagname}{hint}") from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}: every option is a --flag=value")
    configs = {}
    for name, config_class in groups.items():
        kinds = _kinds(config_class)
        configs[name] = config_class(**{f: _value(f, kind, values) for f, kind in kinds.items()})
        check_choices(configs[name])
    return configs


def to_flagfile(*configs: Any) -> str:
    """The configs as a flagfile, every option written out, ready for `--flagfile`."""
    lines = []
    for config in configs:
        for field in dataclasses.fields(config):
            lines.append(f"--{field.name}={flag_text(getattr(config, field.name))}")
    return "\n".join(lines) + "\n"


def from_flagfile(path: str | os.PathLike, groups: Mapping[str, type]) -> dict[str, Any]:
    """Reads what `to_flagfile` wrote."""
    return parse(groups, ["", f"--flagfile={os.fspath(path)}"])


def flag_text(value: Any) -> str:
    """A value as it is written after `--name=`."""
    if isinstance(value, tuple):
        # As absl reads lists: a comma or a quote inside of a value is quoted.
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([_item_text(item) for item in value])
        return text.getvalue()
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _item_text(item: Any) -> str:
    # A whole number without its point: "1,24", as people write it and as runs have it on disk.
    return repr(float(item)).removesuffix(".0") if isinstance(item, float) else str(item)


def _flagfiles_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the flagfiles, `--flagfile=FILE` or `--flagfile FILE`, before the others.

    The command line comes after its flagfile, so that it wins wherever it stands.
    """
    files, others = [], []
    left = iter(arguments)
    for argument in left:
        if argument in ("--flagfile", "-flagfile"):
            name = next(left, None)
            # Without a name it goes last, where absl says that the name is missing.
            others += [argument] if name is None else []
            files += [] if name is None else [argument, name]
        elif argument.startswith(("--flagfile=", "-flagfile=")):
            files.append(argument)
        else:
            others.append(argument)
    return [*files, *others]


def _flag_values(groups: Mapping[str, type]) -> flags.FlagValues:
    values = flags.FlagValues()
    for config_class in groups.values():
        kinds = _kinds(config_class)
        for field in dataclasses.fields(config_class):
            kind = kinds[field.name]
            default = field.default
            common: dict[str, Any] = dict(
                name=field.name,
                default=list(default) if isinstance(default, tuple) else default,
                help=field.metadata["help"],
                flag_values=values,
            )
            if field.metadata["choices"]:
                flags.DEFINE_string(**common)  # `check_choices` has the words for a wrong one
            elif kind is bool:
                flags.DEFINE_bool(**common)
            elif kind is int:
                flags.DEFINE_integer(**common)
            elif kind is float:
                flags.DEFINE_float(**common)
            elif kind is str:
                flags.DEFINE_string(**common)
            else:
                flags.DEFINE_list(**common)
    return values


def _kinds(config_class: type) -> dict[str, Any]:
    """The type of each option, in the order of the fields."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _value(name: str, kind: Any, values: flags.FlagValues) -> Any:
    value = values[name].value
    if not isinstance(value, list):
        return value
    try:
        return tuple(map(typing.get_args(kind)[0], value))
    except ValueError as error:
        raise ValueError(f"--{name}={','.join(value)} must be numbers, comma separated") from error
