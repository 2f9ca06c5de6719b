"""Input checks of the public door: the first error that a caller sees is ours."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stt_kernels import buckets
from stt_kernels.attention.geometry import Rules, Side, Tables, with_unknown_phase

_FLOATS = ("float32", "bfloat16", "float64")


class Call(NamedTuple):
    """A checked call: what every backend is given."""

    q: jax.Array
    k: jax.Array
    tables: Tables
    queries: Side
    keys: Side
    rules: Rules


def check_call(
    q,
    k,
    *,
    times=None,
    query_times=None,
    coords=None,
    query_coords=None,
    time_table=None,
    space_table=None,
    order_table=None,
    cycle_table=None,
    phases=None,
    query_phases=None,
    positions=None,
    query_positions=None,
    segment_ids=None,
    query_segment_ids=None,
    causal=True,
    scale=None,
    normalizer="softmax",
    silu_denominator=None,
) -> Call:
    """Checks everything but the values, fills the defaults in, and drops what takes no part.

    Positions stay None on both sides where the default order holds on both, so that a backend may
    know the causal half before the data. Padded rows of q and k become zero, so that whatever they
    hold can't reach a valid row.
    """
    for name, array in (("q", q), ("k", k)):
        if getattr(array, "ndim", None) != 4:
            raise ValueError(
                f"{name} must be [B, length, H, D]; got shape {list(getattr(array, 'shape', []))}."
            )
        if str(array.dtype) not in _FLOATS:
            raise ValueError(f"{name} must be float32 or bfloat16; got {array.dtype}.")
    num_rows, num_queries, num_heads, width = q.shape
    num_keys = k.shape[1]
    check_array("k", k, (num_rows, num_keys, num_heads, width), str(q.dtype), "as q but for S")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q and k must not be empty; got {list(q.shape)} and {list(k.shape)}.")

    tables = {"time": time_table, "space": space_table, "order": order_table, "cycle": cycle_table}
    for name, table in tables.items():
        # The cycle table gets one more entry, for an unknown phase.
        _check_table(f"{name}_table", table, num_heads, buckets.MAX_BUCKETS - (name == "cycle"))
    if normalizer not in ("softmax", "silu"):
        raise ValueError(f"normalizer must be 'softmax' or 'silu'; got {normalizer!r}.")
    if silu_denominator is not None and not (normalizer == "silu" and silu_denominator > 0):
        raise ValueError(
            "silu_denominator must be > 0 and goes with normalizer='silu'; "
            f"got {silu_denominator} with normalizer={normalizer!r}."
        )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number or None; got {scale}.")

    def pair(name, key_array, query_array, trailing, dtype, user, table, required):
        """Checks one kind of encoding and gives (query side, key side), or None twice."""
        if table is not None and key_array is None and required:
            raise ValueError(f"{user} needs {name} [B, S{_tail(trailing)}]; got None.")
        if key_array is None and query_array is not None and required:
            raise ValueError(f"query_{name} needs {name}; got None.")
        meaning = f"[B, S{_tail(trailing)}]"
        if key_array is not None:
            check_array(name, key_array, (num_rows, num_keys, *trailing), dtype, meaning)
        if query_array is not None:
            shape = (num_rows, num_queries, *trailing)
            check_array(f"query_{name}", query_array, shape, dtype, meaning.replace("S", "L"))
        if table is None:
            return None, None
        if query_array is None and num_queries != num_keys:
            raise ValueError(
                f"query_{name} [B, L{_tail(trailing)}] must be given where L != S and {user} is; "
                f"L = {num_queries}, S = {num_keys}."
            )
        if query_array is None:
            query_array = key_array
        return query_array, key_array

    times_qk = pair("times", times, query_times, (), "int32", "time_table", time_table, True)
    coords_qk = pair(
        "coords", coords, query_coords, (3,), "float32", "space_table", space_table, True
    )
    phases_qk = pair("phases", phases, query_phases, (), "int32", "cycle_table", cycle_table, True)
    segments_qk = pair(
        "segment_ids", segment_ids, query_segment_ids, (), "int32", "segment_ids", segment_ids, True
    )
    in_order = True if causal or order_table is not None else None
    user = "causal" if causal else "order_table"
    positions_qk = pair("positions", positions, query_positions, (), "int32", user, in_order, False)
    if in_order and positions is None and query_positions is not None:
        in_row_order = jnp.arange(num_keys, dtype=jnp.int32)[None]
        positions_qk = query_positions, jnp.broadcast_to(in_row_order, (num_rows, num_keys))

    sides = zip(times_qk, coords_qk, phases_qk, positions_qk, segments_qk, strict=True)
    queries, keys = (Side(*arrays) for arrays in sides)
    tables["cycle"] = with_unknown_phase(cycle_table)
    sides_flat = jax.tree.map(jnp.asarray, (queries, keys, Tables(**tables)))
    queries, keys, checked_tables = sides_flat
    rules = Rules(
        causal=bool(causal),
        scale=float(width**-0.5 if scale is None else scale),
        normalizer=normalizer,
        silu_denominator=None if silu_denominator is None else float(silu_denominator),
    )
    q = zero_padding(jnp.asarray(q), queries.segment_ids)
    k = zero_padding(jnp.asarray(k), keys.segment_ids)
    return Call(q, k, checked_tables, queries, keys, rules)


def check_array(name, array, shape, dtype, meaning) -> None:
    """Checks the shape and the dtype of one argument."""
    found = list(getattr(array, "shape", ())), str(getattr(array, "dtype", type(array).__name__))
    if found != (list(shape), dtype):
        hint = ""
        if name.endswith("times") and found[1] != dtype:
            hint = " Subtract the row's first timestamp in int64 on the host, then cast."
        if name.endswith("coords"):
            hint = " See encode_coords."
        raise ValueError(
            f"{name} must be {dtype} {meaning} = {list(shape)}; got {found[1]} {found[0]}.{hint}"
        )


def zero_padding(array: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Gives `array` [B, N, H, D] with zeros, and no gradient, where `segment_ids` [B, N] is 0."""
    if segment_ids is None:
        return array
    valid = (segment_ids != 0)[:, :, None, None]
    return jnp.where(valid, array, jnp.zeros((), array.dtype))


def _check_table(name, table, num_heads, most_entries) -> None:
    if table is None:
        return
    shape, dtype = list(getattr(table, "shape", ())), str(getattr(table, "dtype", "no dtype"))
    right_shape = len(shape) == 2 and shape[0] == num_heads and 1 <= shape[1] <= most_entries
    if not right_shape or dtype not in ("float32", "float64"):
        raise ValueError(
            f"{name} must be float32 [H, entries] = [{num_heads}, 1..{most_entries}]; "
            f"got {dtype} {shape}."
        )


def _tail(trailing) -> str:
    return "".join(f", {size}" for size in trailing)
