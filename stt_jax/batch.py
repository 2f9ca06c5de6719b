"""What one batch is: the arrays that travel from the data pipeline into the model.

Rows are packed: several people's windows share a row and are told apart by `segment_ids`
(0 = padding). Times are int32 seconds from the first event of their segment, because float32
cannot hold today's clock to the second; places are metres from the first known place of theirs.
"""

from __future__ import annotations

from typing import Any

from flax import struct

HOURS_PER_WEEK = 168
_ROW_MULTIPLE = 128  # whole vector registers, and any mesh of up to 128 devices can split it

Array = Any  # numpy on the host, jax.Array on the device


@struct.dataclass
class History:
    """Events that may be attended to; every array [B, S, ...].

    Attributes:
      items: int32, 0 = not in the vocabulary.
      categories: int32, 0 = unknown.
      contexts: further categorical columns by name, int32, 0 = unknown.
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
      times: int32, same origin as the history's times; meaningless where not `time_known`.
      phases: int32, local hour of the week at the request; -1 = unknown.
      time_known: bool, False hides time and phase from the model.
      coords: float32 [B, R, 3], same origin as the history's coords; NaN = place unknown.
      origins: float32 [B, R, 3], as in `History`.
      last_tokens: int32, row index of the last event that the request sees; -1 = none.
      segment_ids: int32, 0 = padding.
      targets: int32, the item that came; 0 = unknown or none, not learned from.
    """

    users: Array
    times: Array
    phases: Array
    time_known: Array
    coords: Array
    origins: Array
    last_tokens: Array
    segment_ids: Array
    targets: Array


@struct.dataclass
class Catalogue:
    """What the model knows of each item besides its id.

    Row 0 is the unknown item, rows 1..V are the items, the rest up to `table_rows(V)` is padding.

    Attributes:
      is_item: bool [rows], True for rows 1..V.
      categories: int32 [rows].
      coords: float32 [rows, 3], earth-centred metres, NaN = no place.
    """

    is_item: Array
    categories: Array
    coords: Array


def table_rows(num_ids: int) -> int:
    """Rows of a table of ids 1..num_ids: row 0 is the unknown one, padding ends it evenly.

    The number does not depend on the devices, so neither do parameters and checkpoints.
    """
    return -(-(num_ids + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE
