"""Prepared log -> batches: cut into windows, pack, gather; any batch can be made on its own.

A batch is a function of (log, options, step number), so the state of the input is one integer:
grain reads ahead in threads, saves it with the checkpoint and continues from it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from stt_jax.batch import History, Requests
from stt_jax.data.gather import gather_history, gather_requests
from stt_jax.data.packing import Packing, in_order, pack, shuffle_epoch
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.windows import target_windows, training_windows

_ENDLESS = 2**31 - 1


class TrainingBatches:
    """The batches of a training run, by step number: a random-access source for grain.

    Rows run on from one epoch into the next, so no row is left out and no batch is short. Where
    several processes train together each gathers its own rows of every batch, and reads no others.
    """

    def __init__(
        self,
        log: PreparedLog,
        *,
        window: int,
        requests: int,
        batch_rows: int,
        seed: int,
        local_rows: range | None = None,
    ) -> None:
        """Batches of `batch_rows` rows, of which this process makes `local_rows`; None = all."""
        self._log = log
        self._local_rows = range(batch_rows) if local_rows is None else local_rows
        self._row_tokens, self._row_requests = window, requests
        self._batch_rows = batch_rows
        self._windows = training_windows(log, window=window, requests=requests)
        self._packing = pack(
            self._windows.num_tokens,
            self._windows.num_requests,
            row_tokens=window,
            row_requests=requests,
        )
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: shuffle_epoch(self._packing, seed, epoch)
        )

    @property
    def fill(self) -> float:
        """The fraction of tokens that are not padding."""
        return self._packing.fill

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of a batch, of all processes, and tokens of a row."""
        return self._batch_rows, self._row_tokens

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which every training event was asked for once."""
        return self._packing.num_rows

    def num_steps(self, epochs: float) -> int:
        """Steps that cover `epochs` epochs."""
        return max(1, -int(-epochs * self.rows_per_epoch // self._batch_rows))

    def __len__(self) -> int:
        return _ENDLESS  # the loop says when to stop

    def __getitem__(self, step: int) -> tuple[History, Requests]:
        first = step * self._batch_rows
        rows = []
        for row in self._local_rows:
            epoch, index = divmod(first + row, self.rows_per_epoch)
            windows, order = self._epoch(epoch)
            rows.append(_row_windows(self._packing, windows, order[index]))
        history, layout = gather_history(
            self._log, self._windows, rows, row_tokens=self._row_tokens
        )
        shape = (len(rows), self._row_requests)
        return history, gather_requests(self._log, layout, shape)


class PersonBatches:
    """The batches of a private training: each person takes part in a step by a coin of their own.

    A row holds one window of one person, drawn from all of theirs. Rows beyond the people drawn are
    empty. A random-access source like `TrainingBatches`; who is drawn follows from a secret seed.
    """

    def __init__(
        self,
        log: PreparedLog,
        *,
        window: int,
        requests: int,
        batch_rows: int,
        rate: float,
        seed: int,
    ) -> None:
        """Batches of at most `batch_rows` people, each drawn with probability `rate`."""
        self._log = log
        self._row_tokens, self._row_requests = window, requests
        self._batch_rows, self._rate, self._seed = batch_rows, rate, seed
        self._windows = training_windows(log, window=window, requests=requests)
        self._first_windows = np.searchsorted(
            self._windows.users, np.arange(log.num_train_users + 1)
        )

    @property
    def fill(self) -> float:
        """The expected fraction of tokens that are not padding."""
        tokens = np.add.reduceat(self._windows.num_tokens, self._first_windows[:-1])
        of_people = tokens / np.diff(self._first_windows)  # one of a person's windows is drawn
        drawn = self._rate * of_people.sum()
        return float(drawn / self._row_tokens / self._batch_rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of a batch, which are more than the people expected, and tokens of a row."""
        return self._batch_rows, self._row_tokens

    def num_steps(self, epochs: float) -> int:
        """Steps in which as many windows are expected to be drawn as `epochs` epochs have."""
        people = self._rate * self._log.num_train_users
        return max(1, -int(-epochs * len(self._windows) // people))

    def __len__(self) -> int:
        return _ENDLESS  # the loop says when to stop

    def __getitem__(self, step: int) -> tuple[History, Requests]:
        draw = np.random.default_rng([self._seed, step])
        people = np.flatnonzero(draw.random(self._log.num_train_users) < self._rate)
        people = people[: self._batch_rows]
        firsts, ends = self._first_windows[people], self._first_windows[people + 1]
        rows = [np.array([index]) for index in draw.integers(firsts, ends)]
        rows += [np.zeros(0, np.int64)] * (self._batch_rows - len(rows))
        history, layout = gather_history(
            self._log, self._windows, rows, row_tokens=self._row_tokens
        )
        return history, gather_requests(self._log, layout, (self._batch_rows, self._row_requests))


def target_batches(
    log: PreparedLog, targets: Targets, *, window: int, row_requests: int, batch_rows: int
) -> Iterator[tuple[History, Requests, np.ndarray]]:
    """Batches that ask for every target once.

    Yields:
      (history, requests, index): index int64 [B, R], the target that each request asks for,
      -1 = padding.
    """
    windows = target_windows(targets, window=window)
    packing = pack(
        windows.num_tokens, windows.num_requests, row_tokens=window, row_requests=row_requests
    )
    placed, order = in_order(packing)
    for first in range(0, packing.num_rows, batch_rows):
        rows = [_row_windows(packing, placed, row) for row in order[first : first + batch_rows]]
        rows += [np.zeros(0, np.int64)] * (batch_rows - len(rows))
        history, layout = gather_history(log, windows, rows, row_tokens=window)
        requests = gather_requests(log, layout, (batch_rows, row_requests))
        index = np.full(requests.users.shape, -1, np.int64)
        for row, members in enumerate(rows):
            index[row, : len(members)] = members
        yield history, requests, index


def _row_windows(packing: Packing, placed: np.ndarray, row: int) -> np.ndarray:
    return placed[packing.row_starts[row] : packing.row_starts[row + 1]]
