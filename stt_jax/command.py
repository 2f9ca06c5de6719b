"""Command lines out of config dataclasses: grouped `--help`, one-line errors, exit codes.

A command is a function of config objects. `run` gives it a command line:

    def main(argv=None):
        groups = {"model": ModelConfig, "training": TrainingConfig}
        return command.run(do_it, groups, argv, usage=__doc__ or "")

Each dataclass becomes a group of flags (`stt_jax.config.flagfile`); importing a command module
defines none.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from stt_jax.config.flagfile import flag_text, parse
from stt_jax.config.options import choices_text

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
                text += f" One of: {choices_text(field.metadata['choices'])}."
            default = flag_text(field.default)
            lines.append(f"  --{field.name}" + (f"={default}" if default != "" else ""))
            lines += textwrap.wrap(text, 92, initial_indent="      ", subsequent_indent="      ")
    lines += ["", "STT_JAX_TRACEBACK=1 in the environment shows where an error came from."]
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).removeprefix("ERROR:: ").split())
