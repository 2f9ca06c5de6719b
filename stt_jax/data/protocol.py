"""Which events are predicted, and what may be known about the person when they are.

An evaluation is a set of targets. Target t asks: given this person's context, what is the item of
event `events[t]`? The context is the person's events in
`[history_starts[t], history_ends[t])` followed by `[session_starts[t], events[t])`: two ranges,
because a *strict* protocol forbids the events in between.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stt_jax.config.asking import CONTEXTS, TARGETS
from stt_jax.data.prepared_log import PreparedLog

MODES = ("unknown", "known")  # is the time of a request; both are evaluated


@dataclasses.dataclass(frozen=True)
class Targets:
    """Events to predict and, for each, the earlier events that may be seen.

    Attributes:
      users: int64 [T], user row in the log.
      events: int64 [T], index of the event to predict.
      history_starts, history_ends: int64 [T], first range of the context.
      session_starts: int64 [T], the second range of the context is [session_starts, events).
    """

    users: np.ndarray
    events: np.ndarray
    history_starts: np.ndarray
    history_ends: np.ndarray
    session_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, selection: np.ndarray | slice) -> Targets:
        return Targets(
            *(getattr(self, field.name)[selection] for field in dataclasses.fields(self))
        )

    def context(self, index: int) -> np.ndarray:
        """int64 [context length], the event indices that target `index` may see, oldest first."""
        return np.concatenate(
            [
                np.arange(self.history_starts[index], self.history_ends[index]),
                np.arange(self.session_starts[index], self.events[index]),
            ]
        )

    def known(self, log: PreparedLog) -> np.ndarray:
        """bool [T], True where both the person and the item occur in the training part."""
        return (self.users < log.num_train_users) & (log.items[self.events] > 0)

    def known_in(self, log: PreparedLog, other: PreparedLog) -> np.ndarray:
        """bool [T], True where the training part of another log has person and item, by id.

        Args:
          log: the log that the targets are of.
          other: the other one.
        """
        people = set(other.user_ids[: other.num_train_users])
        items = set(other.item_ids[1:])
        has_person = np.array([person in people for person in log.user_ids], bool)
        has_item = np.array([False, *(item in items for item in log.item_ids[1:])], bool)
        return has_person[self.users] & has_item[log.items[self.events]]

    def sample(self, max_targets: int, seed: int) -> Targets:
        """At most `max_targets` of the targets, drawn without replacement, in log order."""
        if max_targets <= 0 or len(self) <= max_targets:
            return self
        chosen = np.random.default_rng(seed).choice(len(self), max_targets, replace=False)
        return self[np.sort(chosen)]


def find_targets(
    log: PreparedLog, part: int, *, targets: str = "every", context: str = "all"
) -> Targets:
    """The targets of one part of the log under a protocol.

    Args:
      log: the prepared log.
      part: `TRAIN`, `VALIDATION` or `TEST`.
      targets: "every" event of the part, "session_last" (the last event of each of the part's
        sessions) or "last" (the last event of each person in the part).
      context: "all" lets a target see everything of its person before it, as in service.
        "strict" lets it see the person's events of earlier parts and the earlier events of its
        own session, as in next-place papers (GETNext, STHGCN).

    Returns:
      Targets in log order. People and items unseen in training are included: see `known`.

    Raises:
      ValueError: an unknown option, or a protocol that needs sessions on a log without them.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}; got {targets!r}")
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {', '.join(CONTEXTS)}; got {context!r}")
    if (targets == "session_last" or context == "strict") and not np.any(log.sessions):
        raise ValueError(
            f"targets={targets!r} with context={context!r} needs sessions, and this log has none; "
            "prepare it with --session=COLUMN, or use targets=every and context=all"
        )
    in_part = np.flatnonzero(log.parts == part)
    user_rows = np.searchsorted(log.user_offsets, in_part, side="right") - 1
    if targets == "every":
        keep = np.ones(len(in_part), bool)
    elif targets == "session_last":
        keep = _last_of_runs(user_rows, log.sessions[in_part])
    else:
        keep = _last_of_runs(user_rows)
    events, users = in_part[keep], user_rows[keep]
    starts = log.user_offsets[users]
    if context == "all":
        return Targets(users, events, starts, events, events)
    # Both look-ups rely on parts being in time order within a person, which prepare guarantees.
    first_in_part = in_part[np.searchsorted(user_rows, users, side="left")]
    run_starts = _run_starts(user_rows, log.sessions[in_part])
    session_starts = in_part[run_starts[keep]]
    return Targets(users, events, starts, first_in_part, session_starts)


def _changes(*keys: np.ndarray) -> np.ndarray:
    """bool [N], True where any key differs from the row before (row 0 included)."""
    changed = np.zeros(len(keys[0]), bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return changed


def _last_of_runs(*keys: np.ndarray) -> np.ndarray:
    return np.append(_changes(*keys)[1:], True)[: len(keys[0])]


def _run_starts(*keys: np.ndarray) -> np.ndarray:
    """int64 [N], the row where each row's run of equal keys begins."""
    changed = _changes(*keys)
    return np.maximum.accumulate(np.where(changed, np.arange(len(changed)), 0))
