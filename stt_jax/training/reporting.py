"""What a run tells while it works: a progress bar, short lines, JSONL and TensorBoard."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping

import rich.console
import rich.progress
import tensorboardX

from stt_jax.metrics import finite_or_none


class Reporter:
    """Writes measures to `metrics.jsonl` and `tensorboard/`, and shows progress on a terminal."""

    def __init__(
        self, directory: pathlib.Path, num_steps: int, first_step: int, *, enabled: bool = True
    ) -> None:
        """Goes on after `first_step`: later reports of an earlier start are dropped.

        Args:
          directory: of the run.
          num_steps: of the whole training.
          first_step: of the checkpoint that training goes on from, or 0.
          enabled: False says and writes nothing: of several processes, one reports.
        """
        self._enabled = enabled
        self._console = rich.console.Console(
            stderr=True,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
            quiet=not enabled,
        )
        self._jsonl_path = directory / "metrics.jsonl"
        self._tensorboard = None
        if enabled:
            _drop_lines_after(self._jsonl_path, first_step)
            self._tensorboard = tensorboardX.SummaryWriter(
                str(directory / "tensorboard"), purge_step=first_step + 1
            )
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[measures]}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "training", total=num_steps, completed=first_step, measures=""
        )

    def advance(self, step: int, measures: str) -> None:
        """Moves the progress bar."""
        self._progress.update(self._task, completed=step, measures=measures)

    def line(self, text: str) -> None:
        """One line for the reader."""
        self._console.print(text)

    def write(self, step: int, kind: str, measures: Mapping[str, float]) -> None:
        """One report to JSONL and TensorBoard.

        Args:
          step: of training.
          kind: "train", "validation", "speed" or "privacy".
          measures: name -> number.
        """
        if self._tensorboard is None:
            return
        record = {"step": step, "kind": kind, "time_s": round(time.time(), 3), **measures}
        line = json.dumps(finite_or_none(record), allow_nan=False)
        with self._jsonl_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in measures.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Ends the progress bar and closes TensorBoard's file."""
        self._progress.stop()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Drops what a killed process reported after its last checkpoint, and a line cut in two."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        aside = path.with_name(path.name + ".new")
        aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        aside.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
