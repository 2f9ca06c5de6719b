"""Command lines out of config dataclasses: flags, grouped `--help`, flagfiles, one-line errors.

A command is a function of config objects. `run` gives it a command line:

    def main(argv=None):
        return command.run(do_it, {"model": ModelConfig, "training": TrainingConfig}, argv)

Each dataclass becomes a group of absl flags in a FlagValues of its own, so importing a command
module defines nothing globally and several commands can run in one process.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import gc
import io
import os
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

if typing.TYPE_CHECKING:
    import rich.console

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# Errors that are the caller's to mend: they are shown as one line, without a traceback.
USER_ERRORS = (ValueError, OSError, NotImplementedError, flags.Error)


def run(
    action: Callable[..., Any],
    groups: Mapping[str, type],
    argv: Sequence[str] | None = None,
    *,
    usage: str,
) -> int:
    """Parses `argv`, builds one config a group and calls `action(**configs)`.

    Args:
      action: called with one keyword a group, its value an instance of the group's dataclass.
      groups: group name -> dataclass whose fields are made by `config.option`.
      argv: program name and arguments; None takes `sys.argv`.
      usage: what the command does, printed on top of `--help`.

    Returns:
      The exit code: 0, or 2 after a line `error: ...` on standard error for input that the
      caller can mend. STT_JAX_TRACEBACK=1 in the environment prints the traceback as well.
    """
    argv = list(sys.argv if argv is None else argv)
    try:
        if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
            print(help_text(argv[0], groups, usage))
            return EXIT_OK
        action(**parse(groups, argv))
    except USER_ERRORS as error:
        if os.environ.get("STT_JAX_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def run_process(main: Callable[[], int]) -> typing.NoReturn:
    """Runs a command that is over soon as the whole process, and ends it with its exit code.

    Python looks for cycles among what is in memory, over and over and once more at the end. A short
    command's modules and expressions all stay: that took a seventh of preparing a small log.
    """
    gc.set_threshold(50_000)
    code = main()
    gc.freeze()
    sys.exit(code)


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
    return {
        name: config_class(**{f.name: _value(f, values) for f in dataclasses.fields(config_class)})
        for name, config_class in groups.items()
    }


def help_text(program: str, groups: Mapping[str, type], usage: str) -> str:
    """What `--help` prints: the usage, then every flag with its default, by group."""
    if program.endswith(".py"):
        program = f"python -m stt_jax.{os.path.basename(program)[:-3]}"
    lines = [usage.strip(), "", f"usage: {program} --flag=value ... [--flagfile=FILE]"]
    for name, config_class in groups.items():
        lines += ["", f"{name}:"]
        for field in dataclasses.fields(config_class):
            text = field.metadata["help"]
            if field.metadata["choices"]:
                text += f" One of: {', '.join(field.metadata['choices'])}."
            default = _flag_text(field.default)
            lines.append(f"  --{field.name}" + (f"={default}" if default != "" else ""))
            lines += textwrap.wrap(text, 92, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def table_console() -> rich.console.Console:
    """Standard output for tables: as wide as the terminal, or wide where there is none to fit.

    In a file or a pipe the ids and numbers must stay whole to be of use. Nor is anything of them
    markup: an item may be called "Alien [remastered]" or ":new:".
    """
    import rich.console  # slow to import, and not every command prints tables

    return rich.console.Console(
        highlight=False,
        markup=False,
        emoji=False,
        width=None if sys.stdout.isatty() else 140,
    )


def to_flagfile(*configs: Any) -> str:
    """The configs as a flagfile, every option written out, ready for `--flagfile`."""
    lines = []
    for config in configs:
        for field in dataclasses.fields(config):
            lines.append(f"--{field.name}={_flag_text(getattr(config, field.name))}")
    return "\n".join(lines) + "\n"


def from_flagfile(path: str | os.PathLike, groups: Mapping[str, type]) -> dict[str, Any]:
    """Reads what `to_flagfile` wrote."""
    return parse(groups, ["", f"--flagfile={os.fspath(path)}"])


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


def _flag_text(value: Any) -> str:
    if isinstance(value, tuple):
        # As absl reads lists: a comma or a quote inside of a value is quoted.
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(value)
        return text.getvalue()
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _flag_values(groups: Mapping[str, type]) -> flags.FlagValues:
    values = flags.FlagValues()
    for config_class in groups.values():
        types = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            kind = types[field.name]
            default = field.default
            common: dict[str, Any] = dict(
                name=field.name,
                default=list(default) if isinstance(default, tuple) else default,
                help=field.metadata["help"],
                flag_values=values,
            )
            if field.metadata["choices"]:
                flags.DEFINE_enum(enum_values=field.metadata["choices"], **common)
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


def _value(field: dataclasses.Field, values: flags.FlagValues) -> Any:
    value = values[field.name].value
    return tuple(value) if isinstance(value, list) else value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).removeprefix("ERROR:: ").split())
