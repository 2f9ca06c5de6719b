"""The bias of a tile in the `xla` backend: look-ups in the tables, and the gradients of the tables.

A table is kept as rows of H numbers, one row an entry, so that one index serves all heads. Two
tables may be joined into one of all the pairs of their entries, which halves the look-ups and the
additions.
"""

import jax.numpy as jnp

from stt_kernels.attention import geometry
from stt_kernels.materialise import materialised

_MAX_JOINED_ENTRIES = 2**14
_IN_BOUNDS = {"mode": "promise_in_bounds", "wrap_negative_indices": False}  # see table_entries


class Bias:
    """The tables of one call, some of them joined."""

    def __init__(self, tables, num_pairs):
        """Joins `tables`, to be used on `num_pairs` pairs of events."""
        self._sizes = tables.sizes()
        self._groups = _join(self._sizes, num_pairs)
        self._rows = materialised(self._joined_rows, tables) if self._groups else []

    def _joined_rows(self, tables):
        joined = []
        for names in self._groups:
            rows = getattr(tables, names[0]).T
            for name in names[1:]:
                rows = (rows[:, None] + getattr(tables, name).T[None]).reshape(-1, rows.shape[1])
            joined.append(rows)
        return joined

    def entries(self, queries, keys):
        """Gives the entries of a tile's pairs in each group of tables, int32 [b or 1, i, j]."""
        return materialised(self._joined_entries, queries, keys) if self._groups else []

    def _joined_entries(self, queries, keys):
        entries = geometry.table_entries(queries, keys, self._sizes)
        joined = []
        for names in self._groups:
            entry = entries[names[0]]
            for name in names[1:]:
                entry = entry * self._sizes[name] + entries[name]
            joined.append(entry)
        return joined

    def look_up(self, entries, dtype):
        """Gives a tile's offsets [b or 1, H, i, j]; None without tables."""
        total = None
        for rows, entry in zip(self._rows, entries, strict=True):
            looked_up = jnp.moveaxis(rows.at[entry].get(**_IN_BOUNDS), -1, 1).astype(dtype)
            total = looked_up if total is None else total + looked_up
        return total

    def zero_gradients(self):
        """Gives the gradients of the joined tables before the first tile."""
        return [jnp.zeros_like(rows) for rows in self._rows]

    def add_gradients(self, gradients, logit_gradient, entries):
        """Adds what one tile gives to the gradients of the joined tables."""
        sums = []
        for gradient, entry in zip(gradients, entries, strict=True):
            updates = logit_gradient
            if entry.shape[0] != updates.shape[0]:  # the same for every row of the batch
                updates = jnp.sum(updates, axis=0, keepdims=True)
            updates = jnp.moveaxis(updates, 1, -1).astype(gradient.dtype)
            sums.append(gradient.at[entry].add(updates, **_IN_BOUNDS))
        return sums

    def split_gradients(self, gradients):
        """Gives the gradient of each table from those of the joined ones."""
        split = {}
        for names, gradient in zip(self._groups, gradients, strict=True):
            by_table = gradient.reshape(*(self._sizes[name] for name in names), -1)
            for axis, name in enumerate(names):
                others = tuple(other for other in range(len(names)) if other != axis)
                split[name] = jnp.sum(by_table, axis=others).T
        return geometry.Tables(**split)


def _join(sizes, num_pairs):
    """Groups tables, at most two together, where that makes few entries for the pairs of events."""
    most = min(_MAX_JOINED_ENTRIES, num_pairs // 4)
    names = [name for name in ("time", "space", "cycle") if name in sizes]
    groups = []
    while names:
        first, *names = names
        partner = [name for name in names if sizes[first] * sizes[name] <= most][:1]
        groups.append((first, *partner))
        names = [name for name in names if name not in partner]
    return [*groups, ("order",)] if "order" in sizes else groups
