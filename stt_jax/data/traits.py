"""Traits: categorical columns of an item (genres, brand) or of a person (age group, occupation).

An item may have several values of a trait, written in one text; a person has one. Numbers of
people, such as ages, become ranges between quantiles. Vocabularies and quantiles come from the
training part; what is known of people holds before they do anything, so it counts for all of them.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from stt_jax.config import TRAIT_SEPARATORS

Texts = Sequence[str | None]

_MOST_BINS = 100_000
_ANY = "any"  # the range of all numbers

_RANGE = re.compile(
    r"below (?P<below>\S+)|(?P<first>\S+) to below (?P<to>\S+)|(?P<from>\S+) and above"
)


def parse_user_trait(text: str) -> tuple[str, int]:
    """COLUMN or COLUMN:BINS -> (column, bins); 0 bins: the values are names.

    Raises:
      ValueError: BINS is no number of 2 to `_MOST_BINS`.
    """
    column, colon, bins = text.rpartition(":")
    if not colon:
        return text, 0
    if not (bins.isdecimal() and 2 <= int(bins) <= _MOST_BINS):
        raise ValueError(
            f"--user_traits={text}: write COLUMN, or COLUMN:BINS with 2 to {_MOST_BINS:,} bins for "
            "numbers"
        )
    return column, int(bins)


def split_values(text: str | None, separator: str | None) -> list[str]:
    """The values in a text, each once; separator None = the text is one value."""
    parts = (text or "").split(TRAIT_SEPARATORS[separator]) if separator else [text or ""]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def encode_item_trait(texts: Texts, separator: str | None) -> tuple[np.ndarray, list[str]]:
    """Rows and vocabulary of a trait of items.

    Args:
      texts: of items 1..V, None = unknown.
      separator: a name of `TRAIT_SEPARATORS`, or None: an item has one value.

    Returns:
      int32 [V + 1, M], M the most values that an item has; and the values, "" and then by falling
      number of items, ties by bytes.
    """
    of_items = [split_values(text, separator) for text in texts]
    values = _vocabulary(value for of_item in of_items for value in of_item)
    most = max(1, max(map(len, of_items), default=0))
    return np.concatenate(
        [np.zeros((1, most), np.int32), find_values(of_items, values, most)]
    ), values


def find_values(of_items: Sequence[Sequence[str]], values: Sequence[str], most: int) -> np.ndarray:
    """Rows of values, int32 [N, most], the most frequent first; unknown ones are left out."""
    row_of = {value: row for row, value in enumerate(values) if row}
    rows = np.zeros((len(of_items), most), np.int32)
    for item, of_item in enumerate(of_items):
        known = sorted(row_of[value] for value in of_item if value in row_of)[:most]
        rows[item, : len(known)] = known
    return rows


def encode_user_trait(
    texts: Texts, num_train_users: int, bins: int
) -> tuple[np.ndarray, list[str]]:
    """Rows and vocabulary of a trait of people.

    Args:
      texts: of all people, those of the training part first; None = unknown.
      num_train_users: how many these are; values that none of them has are unknown.
      bins: ranges of about as many people each that numbers fall in; 0 = values are names.

    Returns:
      int32 [U], and the values; ranges in ascending order.

    Raises:
      ValueError: `bins` and no number.
    """
    if bins:
        return _encode_ranges(texts, num_train_users, bins)
    values = _vocabulary(text for text in texts[:num_train_users] if text)
    row_of = {value: row for row, value in enumerate(values) if row}
    return np.array([row_of.get(text or "", 0) for text in texts], np.int32), values


def find_user_trait(values: Sequence[str], text: str) -> int:
    """The row of a value of a trait of people: by its name, or the range that a number falls in.

    Args:
      values: of `encode_user_trait`.
      text: as in the raw log.

    Returns:
      0 where it is none of them.
    """
    if text in values:
        return list(values).index(text)
    number = _number(text)
    for row, value in enumerate(values):
        bounds = range_of(value)
        if bounds and np.isfinite(number) and bounds[0] <= number < bounds[1]:
            return row
    return 0


def range_of(value: str) -> tuple[float, float] | None:
    """From where to below where a range goes that `_encode_ranges` named; None = it is none."""
    if value == _ANY:
        return -np.inf, np.inf
    found = _RANGE.fullmatch(value)
    if not found:
        return None
    low, high = found["from"] or found["first"], found["below"] or found["to"]
    bounds = _number(low) if low else -np.inf, _number(high) if high else np.inf
    return None if np.isnan(bounds).any() else bounds


def _encode_ranges(texts: Texts, num_train_users: int, bins: int) -> tuple[np.ndarray, list[str]]:
    numbers = np.array([_number(text) for text in texts], np.float64)
    known = ~np.isnan(numbers)
    train = numbers[:num_train_users][known[:num_train_users]]
    if not len(train):
        shown = next((text for text in texts if text), "nothing")
        raise ValueError(f"no number among the people of the training part, e.g. {shown!r}")
    cuts = np.unique(np.quantile(train, np.arange(1, bins) / bins))
    cuts = cuts[cuts > train.min()]  # nobody is below the least of all
    rows = np.where(known, np.searchsorted(cuts, numbers, side="right") + 1, 0)
    if not len(cuts):
        return rows.astype(np.int32), ["", _ANY]
    # `range_of` reads the bounds back: their texts must be the very numbers, to the last digit.
    bounds = [repr(cut).removesuffix(".0") for cut in cuts.tolist()]
    names = [f"below {bounds[0]}"]
    names += [f"{low} to below {high}" for low, high in itertools.pairwise(bounds)]
    return rows.astype(np.int32), ["", *names, f"{bounds[-1]} and above"]


def _number(text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        return np.nan
    return number if np.isfinite(number) else np.nan


def _vocabulary(values: Iterable[str]) -> list[str]:
    counts = collections.Counter(values)
    return ["", *sorted(counts, key=lambda value: (-counts[value], value.encode()))]
