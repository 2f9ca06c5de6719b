"""Longitudes as numbers on a line: for medians and for trees, which know nothing of a circle.

179.9 and -179.9 degrees are neighbours, and the mean or median of the two is no place between them.
So the circle is cut open where a group of places has its widest gap, and longitudes at the western
side of the cut count as 360 degrees more. A group that spans 180 degrees or less, or whose widest
gap holds the date line, stays as it is. `vocabulary.describe_items` says the same of a table.
"""

from __future__ import annotations

import numpy as np

HALF_TURN_E7 = 1_800_000_000  # in 1e-7 degrees
FULL_TURN_E7 = 2 * HALF_TURN_E7


def find_cuts(groups: np.ndarray, longitudes_e7: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The last longitude west of each group's widest gap.

    Args:
      groups: int [N], from 0.
      longitudes_e7: int32 [N].
      mask: bool [N], True for the longitudes that count.

    Returns:
      float64 [largest group + 1] for `unroll`; -inf where no gap is wider than the one that holds
      the date line.
    """
    cuts = np.full(int(groups.max()) + 1 if len(groups) else 0, -np.inf)
    order = np.lexsort((longitudes_e7[mask], groups[mask]))
    groups, degrees_e7 = groups[mask][order], longitudes_e7[mask][order].astype(np.int64)
    if len(groups) == 0:
        return cuts
    found, starts, counts = np.unique(groups, return_index=True, return_counts=True)
    ends = starts + counts - 1
    gaps = np.append(np.diff(degrees_e7), 0)  # from each one to the next
    gaps[ends] = FULL_TURN_E7 - (degrees_e7[ends] - degrees_e7[starts])
    widest = np.maximum.reduceat(gaps, starts)
    places = np.where(gaps == np.repeat(widest, counts), np.arange(len(gaps)), len(gaps))
    firsts = np.minimum.reduceat(places, starts)
    moved = widest > gaps[ends]
    cuts[found[moved]] = degrees_e7[firsts[moved]]
    return cuts


def unroll(longitudes_e7: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """float64 [N], longitudes up to a cut (float64 [N] or one) moved 360 degrees to the east."""
    return np.where(longitudes_e7 <= cuts, float(FULL_TURN_E7), 0.0) + longitudes_e7


def roll(longitudes_e7: np.ndarray) -> np.ndarray:
    """The same places within -180 and 180 degrees; NaN stays."""
    turns = np.where(
        longitudes_e7 > HALF_TURN_E7, 1, np.where(longitudes_e7 < -HALF_TURN_E7, -1, 0)
    )
    return longitudes_e7 - turns * float(FULL_TURN_E7)
