"""Forget one person: take them out of a prepared log, and say which runs have seen them.

    python -m stt_jax.forget --data=prepared/nyc --user=470 --runs=runs

The raw files are not touched, nor are the runs: a model cannot be made to forget, only be trained
again on the log as it is now. A service forgets by DELETE /users/{id}.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from stt_jax import command
from stt_jax.config import ForgetConfig
from stt_jax.data.forgetting import rewrite_without, runs_that_saw
from stt_jax.data.pseudonyms import find_user
from stt_jax.data.store import open_log


def forget(forgetting: ForgetConfig) -> None:
    """Rewrites the log and prints what is left to do."""
    user = find_user(open_log(forgetting.data), forgetting.user, forgetting.key_file)
    before, after = rewrite_without(pathlib.Path(forgetting.data), user)
    print(
        f"{before.num_events - after.num_events:,} events of 1 person removed from "
        f"{forgetting.data}; {after.num_events:,} of {after.num_users:,} people are left"
    )
    runs = runs_that_saw(before, pathlib.Path(forgetting.runs))
    if not runs:
        print(f"no run under {forgetting.runs} was trained on the log as it was")
    for directory, steps in runs.items():
        print(
            f"{directory} has seen them, in checkpoints {', '.join(map(str, steps)) or '(none)'}: "
            "train again on the log as it is now, and remove it"
        )
    print("the raw files that --input of prepare named still hold them")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(forget, {"forgetting": ForgetConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
