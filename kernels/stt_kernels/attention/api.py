"""The public functions: what they mean, what they refuse, and which backend runs."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stt_kernels import dispatch
from stt_kernels.attention import checks, mosaic_tpu, reference, triton, xla

_BACKENDS: dict[str, Any] = {
    "reference": reference,
    "xla": xla,
    "triton": triton,
    "mosaic_tpu": mosaic_tpu,
}
_PLATFORM_ORDERS = {"cpu": ("xla",), "gpu": ("triton", "xla"), "tpu": ("mosaic_tpu", "xla")}
_OTHER_PLATFORM_ORDER = ("xla",)
_BACKEND_FUNCTIONS = {  # by the public function
    "spatiotemporal_attention": "attend",
    "pointer_log_mass": "pointer_log_mass",
}


def spatiotemporal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    times: jax.Array | None = None,
    query_times: jax.Array | None = None,
    coords: jax.Array | None = None,
    query_coords: jax.Array | None = None,
    time_table: jax.Array | None = None,
    space_table: jax.Array | None = None,
    order_table: jax.Array | None = None,
    cycle_table: jax.Array | None = None,
    phases: jax.Array | None = None,
    query_phases: jax.Array | None = None,
    positions: jax.Array | None = None,
    query_positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    query_segment_ids: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    normalizer: str = "softmax",
    silu_denominator: float | None = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """Attends with a learned offset for the time, the distance, the order and the phase between
    events.

        logit = (
            scale * q.k
            + time_table[h, time_bucket(t_q - t_k)]
            + space_table[h, space_bucket(|x_q - x_k|^2)]
            + order_table[h, clip(p_q - p_k, 0, No - 1)]
            + cycle_table[h, (f_q - f_k) mod P]
        )

    over the keys that the query may attend to: not padding, of the same segment and, where causal,
    with `positions <= query_positions`.

    No backend but `reference` stores an L x S array. Logits, the normaliser's statistics and the
    sums of the backward pass are float32. What is left None costs nothing.

    Where L == S, a `query_*` argument left None means its partner. Where L != S it has to be given
    if what it describes is used.

    Args:
      q: float32 or bfloat16 [B, L, H, D]. (float64 is accepted for tests.)
      k: as q, [B, S, H, D].
      v: as q, [B, S, H, D].
      times: int32 [B, S]. Seconds from any origin common to the row; gaps must fit int32.
      query_times: int32 [B, L].
      coords: float32 [B, S, 3]. Metres from any origin common to the row, see `encode_coords`; NaN
        = place unknown.
      query_coords: float32 [B, L, 3].
      time_table: float32 [H, Nt], Nt <= 256. Added by `time_bucket(time gap, Nt)`.
      space_table: float32 [H, Ns], Ns <= 256. Added by `space_bucket(squared distance, Ns)`; its
        last entry also means that a place is unknown.
      order_table: float32 [H, No], No <= 256. Added by position gap.
      cycle_table: float32 [H, P], P <= 255. Added by phase gap: the hour of the week has P = 168.
      phases: int32 [B, S], each in 0..P-1, or negative = unknown: the pair's gap adds nothing.
      query_phases: int32 [B, L], likewise.
      positions: int32 [B, S]. Order within the sequence; None = 0..S-1, also right for packed rows
        whose sequences lie in order, and faster: the causal half is then known before the data.
      query_positions: int32 [B, L]. May be -1: before every event.
      segment_ids: int32 [B, S]. Equal ids attend to each other; 0 = padding, which attends to
        nothing and is attended by nothing.
      query_segment_ids: int32 [B, L].
      causal: keys must have `position_k <= position_q`.
      scale: of q.k; None = D ** -0.5.
      normalizer: "softmax", or "silu": silu(logit) over the number of keys that the query may
        attend to.
      silu_denominator: a constant to take in place of that number.
      implementation: None = the platform's best that can; a name = that one or an error; a sequence
        = the first of those that can. Names: "reference", "xla", "triton", "mosaic_tpu".

    Returns:
      [B, L, H, D] in q's dtype. A query with no key to attend to gives 0, with gradient 0.
      Differentiable in q, k, v and the tables.

    Raises:
      ValueError: an argument has the wrong shape, dtype or range, or lacks its partner.
      NotImplementedError: the implementation asked for can't take this call.

    Source: the pointwise normaliser and the time offset by log buckets are those of HSTU (Zhai et
      al. 2024, section 3.2 and its code).
    Differs from it: tables per head, distance and phase, buckets by float bits, exact gradients in
      O(L) memory.
    """
    call = checks.check_call(
        q,
        k,
        times=times,
        query_times=query_times,
        coords=coords,
        query_coords=query_coords,
        time_table=time_table,
        space_table=space_table,
        order_table=order_table,
        cycle_table=cycle_table,
        phases=phases,
        query_phases=query_phases,
        positions=positions,
        query_positions=query_positions,
        segment_ids=segment_ids,
        query_segment_ids=query_segment_ids,
        causal=causal,
        scale=scale,
        normalizer=normalizer,
        silu_denominator=silu_denominator,
    )
    checks.check_array("v", v, k.shape, str(q.dtype), "as k")
    v = checks.zero_padding(jnp.asarray(v), call.keys.segment_ids)
    backend = _BACKENDS[_choose(implementation, call, "spatiotemporal_attention")]
    out = backend.attend(call.q, call.k, v, call.tables, call.queries, call.keys, call.rules)
    return checks.zero_padding(out, call.queries.segment_ids)


def pointer_log_mass(
    q: jax.Array,
    k: jax.Array,
    *,
    ids: jax.Array,
    target_ids: jax.Array,
    times: jax.Array | None = None,
    query_times: jax.Array | None = None,
    coords: jax.Array | None = None,
    query_coords: jax.Array | None = None,
    time_table: jax.Array | None = None,
    space_table: jax.Array | None = None,
    order_table: jax.Array | None = None,
    cycle_table: jax.Array | None = None,
    phases: jax.Array | None = None,
    query_phases: jax.Array | None = None,
    positions: jax.Array | None = None,
    query_positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    query_segment_ids: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """Gives the log of the softmax mass, averaged over heads, on the keys whose id is the query's
    target.

        log( 1/H * sum_h sum_{s: ids[s] == target_ids[l]} softmax_s(logit[h, l, :])[s] )

    with the logits and masks of `spatiotemporal_attention`, in O(L) memory. It is computed from two
    log-sum-exps, so that a small mass keeps its digits and its gradient.

    Args:
      q: float32 or bfloat16 [B, L, H, D].
      k: as q, [B, S, H, D].
      ids: int32 [B, S]. Any values; padding is told by `segment_ids`.
      target_ids: int32 [B, L].
      times, query_times, coords, query_coords, time_table, space_table, order_table, cycle_table,
        phases, query_phases, positions, query_positions, segment_ids, query_segment_ids, causal,
        scale: as in `spatiotemporal_attention`.
      implementation: as in `spatiotemporal_attention`. Names: "reference", "xla", "triton".

    Returns:
      float32 [B, L], at most 0. Where no key that the query may attend to has its target, exactly
      -1e9, with gradient 0. Differentiable in q, k and the tables.

    Raises:
      ValueError: an argument has the wrong shape, dtype or range, or lacks its partner.
      NotImplementedError: the implementation asked for can't take this call.
    """
    call = checks.check_call(
        q,
        k,
        times=times,
        query_times=query_times,
        coords=coords,
        query_coords=query_coords,
        time_table=time_table,
        space_table=space_table,
        order_table=order_table,
        cycle_table=cycle_table,
        phases=phases,
        query_phases=query_phases,
        positions=positions,
        query_positions=query_positions,
        segment_ids=segment_ids,
        query_segment_ids=query_segment_ids,
        causal=causal,
        scale=scale,
    )
    checks.check_array("ids", ids, k.shape[:2], "int32", "[B, S]")
    checks.check_array("target_ids", target_ids, q.shape[:2], "int32", "[B, L]")
    backend = _BACKENDS[_choose(implementation, call, "pointer_log_mass")]
    ids, target_ids = jnp.asarray(ids), jnp.asarray(target_ids)
    _, _, tables, queries, keys, rules = call
    return backend.pointer_log_mass(call.q, call.k, ids, target_ids, tables, queries, keys, rules)


def attention_weights(
    q: jax.Array,
    k: jax.Array,
    *,
    times: jax.Array | None = None,
    query_times: jax.Array | None = None,
    coords: jax.Array | None = None,
    query_coords: jax.Array | None = None,
    time_table: jax.Array | None = None,
    space_table: jax.Array | None = None,
    order_table: jax.Array | None = None,
    cycle_table: jax.Array | None = None,
    phases: jax.Array | None = None,
    query_phases: jax.Array | None = None,
    positions: jax.Array | None = None,
    query_positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    query_segment_ids: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    normalizer: str = "softmax",
    silu_denominator: float | None = None,
) -> jax.Array:
    """Gives what each query takes of each key, as a dense array: for a few query rows, to serve or
    to explain.

    Args:
      q: float32 or bfloat16 [B, L, H, D].
      k: as q, [B, S, H, D].
      times, query_times, coords, query_coords, time_table, space_table, order_table, cycle_table,
        phases, query_phases, positions, query_positions, segment_ids, query_segment_ids, causal,
        scale, normalizer, silu_denominator: as in `spatiotemporal_attention`, whose output is
        `einsum("bhls,bshd->blhd", weights, v)`.

    Returns:
      float32 [B, H, L, S]; 0 where the query may not attend.

    Raises:
      ValueError: an argument has the wrong shape, dtype or range, or lacks its partner.
    """
    call = checks.check_call(
        q,
        k,
        times=times,
        query_times=query_times,
        coords=coords,
        query_coords=query_coords,
        time_table=time_table,
        space_table=space_table,
        order_table=order_table,
        cycle_table=cycle_table,
        phases=phases,
        query_phases=query_phases,
        positions=positions,
        query_positions=query_positions,
        segment_ids=segment_ids,
        query_segment_ids=query_segment_ids,
        causal=causal,
        scale=scale,
        normalizer=normalizer,
        silu_denominator=silu_denominator,
    )
    return reference.attention_weights(*call)


def available_implementations(
    q: jax.Array,
    k: jax.Array,
    *,
    platform: str | None = None,
    function: str = "spatiotemporal_attention",
    **options,
) -> dict[str, str | None]:
    """Tells which implementation a call would run, and why others would not.

    Args:
      q: as in `spatiotemporal_attention`.
      k: as in `spatiotemporal_attention`.
      platform: "cpu", "gpu" or "tpu"; None = the one JAX runs on, whichever that is.
      function: "spatiotemporal_attention" or "pointer_log_mass": the one to be called.
      **options: the encodings, masks and options of `spatiotemporal_attention`, but
        `implementation`.

    Returns:
      For every implementation, why it can't take the call, or None. They stand in the order in
      which `implementation=None` tries them, those that it never tries last.

    Raises:
      ValueError: as `spatiotemporal_attention`, or there is no such platform or function.
    """
    if platform is not None and platform not in _PLATFORM_ORDERS:
        raise ValueError(f"platform must be one of {', '.join(_PLATFORM_ORDERS)}; got {platform!r}")
    if function not in _BACKEND_FUNCTIONS:
        names = ", ".join(_BACKEND_FUNCTIONS)
        raise ValueError(f"function must be one of {names}; got {function!r}.")
    of_attention = {"normalizer", "silu_denominator"} & set(options)
    if function == "pointer_log_mass" and of_attention:
        raise ValueError(f"pointer_log_mass takes no {min(of_attention)}; leave it out.")
    call = checks.check_call(q, k, **options)
    order = _order_here() if platform is None else _PLATFORM_ORDERS[platform]
    others = [name for name in _BACKENDS if name not in order]
    return {name: _unsupported(name, call, function) for name in (*order, *others)}


def _order_here() -> tuple[str, ...]:
    """Gives the names to try on the platform JAX runs on, best first."""
    return _PLATFORM_ORDERS.get(jax.default_backend(), _OTHER_PLATFORM_ORDER)


def _unsupported(name: str, call: checks.Call, function: str) -> str | None:
    """Gives why an implementation can't run a public function on a call, or None."""
    backend = _BACKENDS[name]
    if not hasattr(backend, _BACKEND_FUNCTIONS[function]):
        return f"it has no {function}."
    return backend.unsupported(call)


def _choose(implementation: str | Sequence[str] | None, call: checks.Call, function: str) -> str:
    reasons = {name: functools.partial(_unsupported, name, call, function) for name in _BACKENDS}
    return dispatch.choose(implementation, _order_here(), reasons)
