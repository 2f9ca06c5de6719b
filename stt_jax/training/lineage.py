"""Which runs have seen a log: trained on it, or begun from a run that was."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from stt_jax.data.prepared_log import PreparedLog
from stt_jax.training.checkpoint import whole_steps
from stt_jax.training.run import identity_of


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run.json tells, of whatever version; `name` is what the origin of others begins with,
    "" where the run's options are lost.
    """

    directory: pathlib.Path
    data_hash: str
    origin: str
    name: str


def runs_that_saw(log: PreparedLog, folder: pathlib.Path) -> dict[pathlib.Path, list[int]]:
    """The runs under a folder that have seen the people of a log, with the steps of checkpoints.

    These are runs on the log as it is, on what it was before people were forgotten, and whatever
    began from one of them by --resume_from, over any number of runs, as long as each is there.
    """
    runs = [run for path in sorted(folder.glob("**/run.json")) if (run := _read(path))]
    hashes = {log.meta.data_hash, *log.meta.former_hashes}
    seen: dict[pathlib.Path, _Run] = {}
    found = [run for run in runs if run.data_hash in hashes]
    while found:
        seen |= {run.directory: run for run in found}
        names = {run.name for run in found} - {""}
        found = [
            run
            for run in runs
            if run.directory not in seen and run.origin.partition("/")[0] in names
        ]
    return {run.directory: whole_steps(run.directory) for run in runs if run.directory in seen}


def _read(path: pathlib.Path) -> _Run | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        data_hash, origin = values["data_hash"], values.get("origin", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not a run of ours, or a damaged one, which nobody can load
    try:
        name = identity_of(path.parent, data_hash, origin)
    except (OSError, ValueError):
        name = ""
    return _Run(path.parent, data_hash, origin, name)
