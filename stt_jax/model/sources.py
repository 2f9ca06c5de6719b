"""What each source of the mixture says of a request, given the encoded history.

The functions take the bound model: they are the part of it that comes after encoding, in training
and in service.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.model import crowd
from stt_jax.model.block import Memory
from stt_jax.model.geometry import Geometry, request_geometry, request_places, seen_events
from stt_jax.model.habits import habit_mass
from stt_jax.model.likely_times import asked_after, hide_time, likely_waits
from stt_jax.model.mixture import Answer
from stt_jax.model.recurrence import find_recurrence, find_recurrences
from stt_jax.model.segments import at_tokens, previous_in_segment

if TYPE_CHECKING:
    from stt_jax.model.stt import SpatiotemporalTransformer

_TINY = 1e-30  # no probability, as a number to divide by


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A history and what is kept of it for requests.

    Attributes:
      history: [B, S].
      states: [B, S, E], of `encode`.
      memory: what the decoder attends to.
      pointer_keys: of the pointers; None = the model has none.
    """

    history: History
    states: jax.Array
    memory: Memory
    pointer_keys: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the sources of the mixture say of requests.

    Attributes:
      queries: [B, R, E], what the catalogue is compared with.
      log_gates: float32 [B, R, 1 + M], without habits; their exponentials sum to what habits leave.
      pointed: float32 [B, R, S] of every pointer, its mass on each event.
      sources: what the crowd names.
      habits: float32 [B, R, S], share of the answer on each event by habit; None = no habits.
      boosts: of generating; None = nothing.
    """

    queries: jax.Array
    log_gates: jax.Array
    pointed: list[jax.Array]
    sources: list[crowd.Candidates]
    habits: jax.Array | None
    boosts: crowd.Boosts | None


def answer(
    model: SpatiotemporalTransformer, encoded: Encoded, catalogue: Catalogue, requests: Requests
) -> Answer:
    """What requests [B, R] are to be scored with: `ask`, weighted and summed by item named."""
    asked = ask(model, encoded, catalogue, requests)
    gates = jnp.exp(asked.log_gates)
    batch = asked.queries.shape[:2]
    items, masses = [jnp.zeros((*batch, 0), jnp.int32)], [jnp.zeros((*batch, 0))]
    if asked.pointed:
        mass = jnp.zeros_like(asked.pointed[0]) if asked.habits is None else asked.habits
        for number, pointed in enumerate(asked.pointed, start=1):
            mass = mass + gates[..., number, None] * pointed
        items.append(jnp.broadcast_to(encoded.history.items[:, None], mass.shape))
        masses.append(mass)
    for number, named in enumerate(asked.sources, start=1 + len(asked.pointed)):
        items.append(named.items)
        masses.append(gates[..., number, None] * named.shares)
    return Answer(
        asked.queries,
        request_places(encoded.history, requests),
        gates[..., 0],
        jnp.concatenate(items, axis=-1),
        jnp.concatenate(masses, axis=-1),
        asked.boosts,
    )


def ask(
    model: SpatiotemporalTransformer, encoded: Encoded, catalogue: Catalogue, requests: Requests
) -> Asked:
    """The sources of requests [B, R]; where a time is hidden, at `likely_times`."""
    sources = crowd.find_sources(model.config, catalogue, encoded.history, requests, held_out=False)
    asked = _ask_once(model, encoded, requests, sources)
    if catalogue.waits_s is None:
        return asked
    gates, masses, habits = _mean_over_waits(model, encoded, requests, asked, catalogue.waits_s)
    return dataclasses.replace(
        asked,
        log_gates=jnp.log(jnp.maximum(gates, _TINY)),
        pointed=[
            mass / jnp.maximum(gates[..., number, None], _TINY)
            for number, mass in enumerate(masses, start=1)
        ],
        habits=habits,
    )


def _ask_once(
    model: SpatiotemporalTransformer,
    encoded: Encoded,
    requests: Requests,
    sources: list[crowd.Candidates],
) -> Asked:
    config, history = model.config, encoded.history
    hidden, geometry = decode(
        model, encoded.states, encoded.memory, history, requests, deterministic=True
    )
    queries = model.generate(hidden)
    geometries, counts = pointed_at(model, history, requests, geometry)
    counts += [named.counts for named in sources]
    pointed = []
    if encoded.pointer_keys is not None:
        pointed = [
            model.pointers[name].event_mass(hidden, encoded.pointer_keys, geometries[name])
            for name in model.pointer_names
        ]
    log_gates = model.mixer(queries, stack(counts, queries))
    habits = None
    if config.use_pointer and config.habit_share:
        habits = config.habit_share * habit_mass(history, requests, use_time=config.use_time)
        # Who has no habits yet is answered by the others alone.
        log_gates = log_gates + jnp.log1p(-habits.sum(axis=-1, keepdims=True))
    return Asked(queries, log_gates, pointed, sources, habits, boosts(model, queries, sources))


def _mean_over_waits(
    model: SpatiotemporalTransformer,
    encoded: Encoded,
    requests: Requests,
    asked: Asked,
    waits_s: jax.Array,
) -> tuple[jax.Array, list[jax.Array], jax.Array | None]:
    """Gates [B, R, 1 + M], the pointers' shares and the habits of the answer, float32 [B, R, S].

    Those of `asked`, but of requests that hide their time the mean over likely ones.
    """
    hides = hide_time(encoded.history, requests)

    def shares(of: Asked) -> tuple[jax.Array, list[jax.Array], jax.Array | None]:
        gates = jnp.exp(of.log_gates)
        masses = [gates[..., i, None] * mass for i, mass in enumerate(of.pointed, start=1)]
        return gates, masses, of.habits

    def add(model: SpatiotemporalTransformer, total: Any, waits: jax.Array) -> tuple[Any, None]:
        then = asked_after(encoded.history, requests, waits)
        now = shares(_ask_once(model, encoded, then, asked.sources))
        return jax.tree.map(jnp.add, total, now), None

    as_asked = shares(asked)

    def mean(model: SpatiotemporalTransformer) -> Any:
        waits = likely_waits(waits_s, encoded.history, requests)
        over_waits = nn.scan(add, variable_broadcast="params", split_rngs={})
        total, _ = over_waits(model, jax.tree.map(jnp.zeros_like, as_asked), waits)
        return jax.tree.map(
            lambda summed, once: jnp.where(hides[..., None], summed / len(waits), once),
            total,
            as_asked,
        )

    # Nothing of it where every request tells its time, as in service.
    return nn.cond(hides.any(), mean, lambda _: as_asked, model)


def decode(
    model: SpatiotemporalTransformer,
    states: jax.Array,
    memory: Memory,
    history: History,
    requests: Requests,
    *,
    deterministic: bool,
) -> tuple[jax.Array, Geometry]:
    """The decoder's hidden states of the requests, [B, R, E], and where they stand."""
    geometry = request_geometry(model.config, history, requests)
    hidden = model.decoder(states, memory, history, requests, geometry, deterministic=deterministic)
    return hidden, geometry


def pointed_at(
    model: SpatiotemporalTransformer, history: History, requests: Requests, geometry: Geometry
) -> tuple[dict[str, Geometry], list[jax.Array]]:
    """Which events each pointer may point at, and how many they are, float32 [B, R] each."""
    geometries = {"pointer": geometry}
    counts = []
    if model.config.use_pointer:
        counts.append(seen_events(history, requests).sum(axis=-1, dtype=jnp.int32))
    if "sequel" in model.pointer_names:
        if requests.last_tokens.shape[1] == 1:  # as in service
            found = find_recurrence(history.items, history.segment_ids, requests.last_tokens)
        else:
            found = find_recurrences(history.items, history.segment_ids)
        # Its segments are the events that followed one and the same item.
        geometries["sequel"] = dataclasses.replace(
            geometry,
            segment_ids=previous_in_segment(found.classes, history.segment_ids),
            query_segment_ids=at_tokens(found.classes, requests.last_tokens),
        )
        earlier = at_tokens(found.counts, requests.last_tokens) - 1
        counts.append(jnp.maximum(earlier, 0))
    return geometries, [count.astype(jnp.float32) for count in counts]


def boosts(
    model: SpatiotemporalTransformer, queries: jax.Array, sources: list[crowd.Candidates]
) -> crowd.Boosts | None:
    """What the crowd adds to the logits of generating; None = the model does not let it."""
    return model.booster(queries, sources) if model.config.use_boost else None


def stack(sources: list[jax.Array], queries: jax.Array) -> jax.Array:
    """One number [B, R] a source as float32 [B, R, M]."""
    return jnp.stack(sources, axis=-1) if sources else jnp.zeros((*queries.shape[:2], 0))
