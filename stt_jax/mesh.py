"""The device mesh that a computation runs under, as the code inside it sees it.

A computation is written for whole arrays. Under `jax.set_mesh` the compiler splits them as their
shardings say: batches over the axis `DATA`, tables of items and people over the axis `MODEL`. Only
what it cannot see into, or would split badly, asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA = "data"
MODEL = "model"


def axis_size(name: str) -> int:
    """Devices along an axis of the mesh in use; 1 where there is none."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(name, 1)


def is_split() -> bool:
    """Whether the compiler splits arrays here, over an axis of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = set(mesh.axis_names) - set(mesh.manual_axes)
    return any(axis_size(name) > 1 for name in automatic)


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets each device run `function` on its own rows of the batch.

    For kernels: a custom call is opaque to the compiler's partitioner, and a loop over the rows of
    a batch would make it fetch them all.

    Args:
      function: of (rows, others): pytrees of arrays, those in `rows` with the batch as their first
        axis, as its result has; row i of the result may depend on row i alone, and on `others`.

    Returns:
      The same function; without a mesh, `function` itself.
    """
    if axis_size(DATA) * axis_size(MODEL) == 1:
        return function
    rows = PartitionSpec(DATA)
    # The axis MODEL is left to the compiler. The kernels' own backward passes don't say what varies
    # over which axis, so that is not checked.
    return jax.shard_map(
        function,
        in_specs=(rows, PartitionSpec()),
        out_specs=rows,
        axis_names={DATA},
        check_vma=False,
    )
