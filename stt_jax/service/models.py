"""The model that answers: loading a run with its log, and noticing a newer one."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib

import jax
import numpy as np

from stt_jax import session
from stt_jax.data.newitems import read_new_items
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.store import open_log
from stt_jax.model.head import ItemScorer
from stt_jax.ranking import item_coords
from stt_jax.relations import model_catalogue
from stt_jax.successions import LiveSuccessions
from stt_jax.training.checkpoint import whole_steps
from stt_jax.training.run import Run, load_run, read_run_files

_log = logging.getLogger("stt_jax.service")


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
    """A run with everything that is made of it once.

    Attributes:
      run, log: the run and the log it was trained on.
      scorer: the catalogue's side of the scores, on the device.
      identity: of the run's files when they were loaded, see `model_identity`.
    """

    run: Run
    log: PreparedLog
    scorer: ItemScorer
    identity: str

    @property
    def checkpoint(self) -> tuple[str, int]:
        """Tells trained models apart."""
        return self.identity.split("/")[0], self.run.step

    @functools.cached_property
    def coords(self) -> np.ndarray:
        """float64 [V + 1, 3], places of the items."""
        return item_coords(self.log)

    @functools.cached_property
    def item_vectors(self) -> np.ndarray:
        """float32 [rows, E], of the rows of the catalogue."""
        return np.asarray(self.scorer.vectors, np.float32)

    @functools.cached_property
    def item_rows(self) -> dict[str, int]:
        """Row of every item of the vocabulary that was not forgotten."""
        ids = self.log.item_ids
        return {ids[row]: row for row in np.flatnonzero(self.log.is_item).tolist()}

    @functools.cached_property
    def category_rows(self) -> dict[str, int]:
        """Row of every category."""
        return _rows(self.log.category_values)

    @functools.cached_property
    def domain_rows(self) -> dict[str, int]:
        """Row of every domain."""
        return _rows(self.log.domain_values)

    @functools.cached_property
    def context_rows(self) -> dict[str, dict[str, int]]:
        """Row of every value of every context column."""
        return {name: _rows(values) for name, values in self.log.context_values.items()}

    def user_row(self, user: str) -> int | None:
        """The person's row in the prepared log; None = not in there."""
        try:
            return self.log.user_row(user)
        except ValueError:
            return None


def load_model(
    directory: pathlib.Path, data: str, items: str = "", key_file: str = ""
) -> ServedModel:
    """Loads the best checkpoint of a run, with the items of a file, if one is named.

    Items that the log knows by now are left out: a newer model may have been trained with what was
    new to the one before it.

    Raises:
      ValueError: no run, no checkpoint, another log, a table of items that is none, or not the key
        of the items' pseudonyms.
    """
    identity = model_identity(directory)
    log = open_run_log(directory, data)
    if items:
        log = read_new_items(log, items, key_file, _note_known)
    run = load_run(directory, log)
    items_of_log = model_catalogue(log, run.model_config, live_trends=True)
    if items_of_log.successions is not None:  # in the shape that they keep as events come in
        latest = LiveSuccessions(log).successions()
        items_of_log = dataclasses.replace(items_of_log, successions=latest)
    catalogue = jax.tree.map(jax.numpy.asarray, items_of_log)
    return ServedModel(run, log, session.item_scorer(run.model, run.params, catalogue), identity)


def open_run_log(directory: pathlib.Path, data: str) -> PreparedLog:
    """The log at `data`, or else where the run says that its own is.

    Raises:
      ValueError: no run, or no log.
    """
    _, configs = read_run_files(directory)
    return open_log(data or configs["training"].data)


def model_identity(directory: pathlib.Path) -> str:
    """Changes whenever `load_model` might load something else: a new run or a new checkpoint.

    Raises:
      ValueError: there is no run.
    """
    read_run_files(directory)
    changed = (directory / "run.json").stat().st_mtime_ns
    return f"{changed}/{','.join(str(step) for step in whole_steps(directory))}"


def _note_known(num_items: int) -> None:
    _log.info("items", extra={"fields": {"outcome": "known already", "left_out": num_items}})


def _rows(values) -> dict[str, int]:
    return {value: row for row, value in enumerate(values) if row > 0}
