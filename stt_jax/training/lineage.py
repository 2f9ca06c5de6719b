"""Which runs have seen a log, trained on it or begun from one that was; what those began from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

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

    @property
    def parent(self) -> str:
        """The name of the run that it began from; "" = none."""
        return self.origin.partition("/")[0]


def runs_that_saw(log: PreparedLog, folder: pathlib.Path) -> dict[pathlib.Path, list[int]]:
    """The runs under a folder that have seen the people of a log, with the steps of checkpoints.

    These are runs on the log as it is, on what it was before people were forgotten, and whatever
    began from one of them by --resume_from, over any number of runs, as long as each is there.
    """
    runs = _runs_under(folder)
    seen = _that_saw(log, runs)
    return {run.directory: whole_steps(run.directory) for run in runs if run.directory in seen}


def runs_before(log: PreparedLog, folder: pathlib.Path) -> list[pathlib.Path]:
    """The runs under a folder that those of `runs_that_saw` began from, without those themselves.

    They were trained on other logs, mostly older ones of the same people.
    """
    runs = _runs_under(folder)
    seen = _that_saw(log, runs)
    before: set[pathlib.Path] = set()
    found = [run for run in runs if run.directory in seen]
    while found:
        origins = {run.parent for run in found} - {""}
        found = [
            run for run in runs if run.name in origins and run.directory not in {*seen, *before}
        ]
        before |= {run.directory for run in found}
    return sorted(before)


def _runs_under(folder: pathlib.Path) -> list[_Run]:
    return [run for path in sorted(folder.glob("**/run.json")) if (run := _read(path))]


def _that_saw(log: PreparedLog, runs: Sequence[_Run]) -> set[pathlib.Path]:
    hashes = {log.meta.data_hash, *log.meta.former_hashes}
    seen: set[pathlib.Path] = set()
    found = [run for run in runs if run.data_hash in hashes]
    while found:
        seen |= {run.directory for run in found}
        names = {run.name for run in found} - {""}
        found = [run for run in runs if run.directory not in seen and run.parent in names]
    return seen


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
