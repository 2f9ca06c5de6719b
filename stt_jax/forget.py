"""Forget one person: take them out of a prepared log, and say which runs have seen them.

    python -m stt_jax.forget --data=prepared/nyc --user=470 --runs=runs

Runs that those began from by --resume_from are named apart: they were trained on logs of their own,
which may hold the person, too.

The raw files are not touched, nor are the runs: a model cannot be made to forget, only be trained
again on the log as it is now. Until then those runs answer nobody from that log any more. Files
that prepare --write_recbole wrote are removed whole. A service forgets by DELETE /users/{id}.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from stt_jax import command
from stt_jax.config import ForgetConfig
from stt_jax.data.forgetting import forget_person
from stt_jax.data.pseudonyms import find_user
from stt_jax.data.recbole import FOLDER
from stt_jax.data.store import open_log
from stt_jax.training.lineage import runs_before, runs_that_saw
from stt_jax.training.run import read_run_files


def forget(forgetting: ForgetConfig) -> None:
    """Rewrites the log and prints what is left to do."""
    directory = pathlib.Path(forgetting.data)
    user = find_user(open_log(directory), forgetting.user, forgetting.key_file)
    recbole = directory / FOLDER
    had_recbole = recbole.is_dir()
    before, after = forget_person(directory, user)
    print(
        f"{before.num_events - after.num_events:,} events of 1 person removed from "
        f"{forgetting.data}; {after.num_events:,} of {after.num_users:,} people are left"
    )
    if had_recbole:
        print(
            f"the RecBole files in {recbole} held them and are removed"
            + (", but other files in there are not" if recbole.is_dir() else "")
        )
    runs = runs_that_saw(before, pathlib.Path(forgetting.runs))
    if not runs:
        print(f"no run under {forgetting.runs} was trained on the log as it was")
    for run, steps in runs.items():
        print(
            f"{run} has seen them, in checkpoints {', '.join(map(str, steps)) or '(none)'}: "
            "train again on the log as it is now, and remove it"
        )
    if runs:
        print(
            "evaluate, recommend, serve and export refuse these runs from now on, for everybody: "
            "the log is not the one that they were trained on"
        )
    for run in runs_before(before, pathlib.Path(forgetting.runs)):
        print(
            f"{run} is what one of them began from, and its own log, {_log_of(run)}, may hold "
            "them, too: forget them there first, and do not give it to --resume_from again"
        )
    print("the raw files that --input of prepare named still hold them")


def _log_of(run: pathlib.Path) -> str:
    """Where the log of a run was when it was trained, as far as its files tell."""
    try:
        _, configs = read_run_files(run)
    except (OSError, ValueError):
        return "wherever it is"
    return f"--data={configs['training'].data}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(forget, {"forgetting": ForgetConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
