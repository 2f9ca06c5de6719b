"""What one batch is: the arrays that travel from the data pipeline into the model.

Rows are packed: several people's windows share a row and are told apart by `segment_ids`
(0 = padding). Times are int32 seconds from the first event of their segment, because float32
cannot hold today's clock to the second; places are metres from the first known place of theirs.
"""

from __future__ import annotations

from typing import Any

from flax import struct

HOURS_PER_WEEK = 168
FIRST_WEEKEND_HOUR = 5 * 24  # a week begins on Monday
NUM_LATEST = 128  # times that something followed an item which a request looks at
ROW_MULTIPLE = 128  # whole vector registers, and any mesh of up to 128 devices can split it

Array = Any  # numpy on the host, jax.Array on the device


@struct.dataclass
class History:
    """Events that may be attended to; every array [B, S, ...].

    Attributes:
      items: int32, 0 = not in the vocabulary.
      categories: int32, 0 = unknown.
      contexts: further categorical columns by name, int32, 0 = unknown.
      numbers: numeric columns by name, float32, as the prepared log scales them; NaN = unknown.
      traits: int32 [B, S, M] by name, values that the item has, 0 = no further one.
      times: int32, seconds since the first event of the segment.
      gaps_s: int32, seconds since the person's previous event, -1 = no previous event.
      phases: int32, local hour of the week, Monday 00:00 is 0; -1 = unknown.
      coords: float32 [B, S, 3], metres from `origins`, NaN = place unknown.
      origins: float32 [B, S, 3], earth-centred metres, one point a segment.
      segment_ids: int32, 0 = padding.
    """

    items: Array
    categories: Array
    contexts: dict[str, Array]
    numbers: dict[str, Array]
    traits: dict[str, Array]
    times: Array
    gaps_s: Array
    phases: Array
    coords: Array
    origins: Array
    segment_ids: Array


@struct.dataclass
class Requests:
    """Questions "this person, at this time and place: what next?"; every array [B, R, ...].

    Attributes:
      users: int32, 0 = a person unknown to the model.
      traits: int32 by name, what is known of the person, 0 = unknown.
      times: int32, same origin as the history's times; meaningless where not `time_known`.
      phases: int32, local hour of the week at the request; -1 = unknown.
      time_known: bool, False hides time and phase from the model.
      coords: float32 [B, R, 3], same origin as the history's coords; NaN = place unknown.
      origins: float32 [B, R, 3], as in `History`.
      last_tokens: int32, row index of the last event that the request sees; -1 = none.
      minutes: int32, minutes since 1970 at the request; meaningless where not `time_known`.
      last_minutes: int32, the same at the last event that the request sees, or at the request
        itself where it sees none: what is known of "now" even if the time is hidden. A service
        has that it is now.
      segment_ids: int32, 0 = padding.
      targets: int32, the item that came; 0 = unknown or none, not learned from.
      domains: bool [B, R, D], which domains the answer may be of; None where the log has none.
    """

    users: Array
    traits: dict[str, Array]
    times: Array
    phases: Array
    time_known: Array
    coords: Array
    origins: Array
    last_tokens: Array
    minutes: Array
    last_minutes: Array
    segment_ids: Array
    targets: Array
    domains: Array = None


@struct.dataclass
class Relation:
    """For every row, an item or a stretch of time, the F items that the crowd had most with it.

    Attributes:
      items: int32 [N, F], 0 = none.
      shares: float32 [N, F], estimated probability of each; a row sums to at most one.
      held_out_shares: the same with one observation of the pair taken away: what the others say to
        the person who made it, for training.
      counts: float32 [N], observations of the row; 0 = nothing is known, as of row 0.
      held_out_counts: float32 [N], the same less the one that is taken away.
    """

    items: Array
    shares: Array
    held_out_shares: Array
    counts: Array
    held_out_counts: Array


@struct.dataclass
class Trends:
    """What was popular at some moments; the last row is the latest.

    Attributes:
      relations: one a half-life, a row a moment, from 1.
      start_minutes: int32 [N], minutes since 1970 from which rows 1..N hold, ascending.
    """

    relations: tuple[Relation, ...]
    start_minutes: Array


@struct.dataclass
class Successions:
    """Every time that an item came right after another, for anybody.

    Attributes:
      starts: int32 [rows + 1]; what followed row r of the catalogue is starts[r]:starts[r + 1].
      items: int32 [E], what followed.
      minutes: int32 [E], minutes since 1970 of the event that followed, ascending within a row's
        stretch; the largest int32 at its end where it has room left.
      newest: int32 [], the latest of the minutes.
    """

    starts: Array
    items: Array
    minutes: Array
    newest: Array


@struct.dataclass
class Catalogue:
    """What the model knows of each item besides its id.

    Row 0 is the unknown item, rows 1..V are the items, the rest up to `table_rows(V)` is padding.

    Attributes:
      is_item: bool [rows], True for rows 1..V, but for those of items that were forgotten.
      categories: int32 [rows].
      coords: float32 [rows, 3], earth-centred metres, NaN = no place.
      traits: int32 [rows, M] by name, values that the item has, 0 = no further one.
      relations: what the crowd did, by name, a row an item; empty where the model does not look.
      trends: what was popular when; None where the model does not look.
      successions: what followed what when; None where the model does not look.
      log_popularity: float32 [rows], log of each item's share of the training events; the mean for
        the unknown item and those without any. None where the model does not look.
      waits_s: int32 [168, K], equally likely waits for the next event, by the hour of the week of
        the one before, for requests that hide their time; None where the model does not look.
      target_weights: float32 [rows], what a training request whose answer is the item counts; None
        = all alike.
      num_forgotten: rows of items that were forgotten; not an array, for divisors are compiled in.
    """

    is_item: Array
    categories: Array
    coords: Array
    traits: dict[str, Array] = struct.field(default_factory=dict)
    relations: dict[str, Relation] = struct.field(default_factory=dict)
    trends: Trends | None = None
    successions: Successions | None = None
    log_popularity: Array | None = None
    waits_s: Array | None = None
    target_weights: Array | None = None
    num_forgotten: int = struct.field(pytree_node=False, default=0)


def table_rows(num_ids: int) -> int:
    """Rows of a table of ids 1..num_ids: row 0 is the unknown one, padding ends it evenly.

    The number does not depend on the devices, so neither do parameters and checkpoints.
    """
    return -(-(num_ids + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
