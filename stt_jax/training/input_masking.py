"""What training hides of its requests, so that one model answers with or without it.

Each kind is hidden for a random part of the requests, or of the windows: request time and place,
the last events, the person and their history, the domain that is asked for, and everything that
the person did in one of the domains.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from stt_jax.batch import History, Requests
from stt_jax.config import DOMAIN, TrainingConfig

COLD_EVENTS = 10  # of a person: whose history may be hidden has fewer


def hide(
    history: History, requests: Requests, key: jax.Array, config: TrainingConfig
) -> tuple[History, Requests]:
    """Hides at random what the rates of the config say."""
    if requests.domains is not None and config.hide_domain_rate:
        history, requests = hide_domains(
            history,
            requests,
            jax.random.fold_in(key, 5),
            rate=config.hide_domain_rate,
            num_domains=requests.domains.shape[-1],
        )
    if config.cold_rate:
        requests = hide_people(history, requests, jax.random.fold_in(key, 3), config.cold_rate)
    if config.stale_rate:
        requests = hide_last_events(
            history,
            requests,
            jax.random.fold_in(key, 6),
            rate=config.stale_rate,
            mean_events=config.stale_events,
        )
    return history, hide_parts(requests, key, config)


def hide_last_events(
    history: History, requests: Requests, key: jax.Array, *, rate: float, mean_events: float
) -> Requests:
    """Lets a part of the requests see a history that ends some events earlier.

    How many is geometric, from 1, with that mean; the first event of a window stays. So the model
    learns what comes some time after an event, too: to answer from a state that is behind, or for
    more than the very next event.
    """
    is_first = _first_tokens(history)
    places = jnp.arange(is_first.shape[1], dtype=jnp.int32)[None]
    starts = jax.lax.cummax(jnp.where(is_first, places, 0), axis=1)
    last = jnp.maximum(requests.last_tokens, 0)
    drawn_key, number_key = jax.random.split(key)
    drawn = jax.random.bernoulli(drawn_key, rate, last.shape)
    number = jax.random.geometric(number_key, 1 / mean_events, last.shape, jnp.int32)
    earlier = jnp.maximum(last - number, jnp.take_along_axis(starts, last, axis=1))
    stale = drawn & (requests.last_tokens >= 0)
    gone_s = jnp.take_along_axis(history.times, last, axis=1) - jnp.take_along_axis(
        history.times, earlier, axis=1
    )
    return dataclasses.replace(
        requests,
        last_tokens=jnp.where(stale, earlier, requests.last_tokens),
        last_minutes=_earlier(requests.last_minutes, jnp.where(stale, gone_s, 0)),
    )


def hide_people(history: History, requests: Requests, key: jax.Array, rate: float) -> Requests:
    """Hides who asks, and all that they did, from a part of people's first requests.

    The model then answers as it would somebody new. Only requests with fewer than `COLD_EVENTS`
    events before them are drawn: what people do later says little of how they begin.
    """
    is_first = _first_tokens(history)
    places = jnp.arange(is_first.shape[1], dtype=jnp.int32)[None]
    starts = jax.lax.cummax(jnp.where(is_first, places, 0), axis=1)
    last = jnp.maximum(requests.last_tokens, 0)
    first = jnp.take_along_axis(starts, last, axis=1)
    num_seen = requests.last_tokens - first + 1
    # A window that begins later in a person's life has a first token with an event before it.
    begins = jnp.take_along_axis(history.gaps_s, first, axis=1) < 0
    drawn = jax.random.bernoulli(key, rate, requests.users.shape)
    cold = drawn & ((num_seen == 0) | (begins & (num_seen < COLD_EVENTS)))
    return dataclasses.replace(
        requests,
        users=jnp.where(cold, 0, requests.users),
        last_tokens=jnp.where(cold, -1, requests.last_tokens),
        # Who is new is asked as of now, and not as of an event that nobody sees.
        last_minutes=jnp.where(cold, requests.minutes, requests.last_minutes),
    )


def hide_parts(requests: Requests, key: jax.Array, config: TrainingConfig) -> Requests:
    """Hides times, places and domains of requests.

    A shown place is moved by normal noise first: the place of the target itself would give the
    target away.
    """
    time_key, place_key, noise_key = jax.random.split(key, 3)
    shape = requests.time_known.shape
    show_time = jax.random.bernoulli(time_key, config.known_time_rate, shape)
    show_place = jax.random.bernoulli(place_key, config.known_place_rate, shape)
    noise = config.place_noise_m * jax.random.normal(noise_key, requests.coords.shape)
    domains = requests.domains
    if domains is not None:
        show = jax.random.bernoulli(jax.random.fold_in(key, 4), config.known_domain_rate, shape)
        domains = domains | ~show[..., None]
    return dataclasses.replace(
        requests,
        time_known=requests.time_known & show_time,
        coords=jnp.where(show_place[..., None], requests.coords + noise, jnp.nan),
        domains=domains,
    )


def hide_domains(
    history: History, requests: Requests, key: jax.Array, *, rate: float, num_domains: int
) -> tuple[History, Requests]:
    """Takes one domain out of the histories of some windows, as if it had never been there.

    What is asked in that domain has to be known from the others, as of a person who is new to it.

    Args:
      history, requests: a batch.
      key: draws the windows, and of each which of its domains.
      rate: fraction of the windows.
      num_domains: D.

    Returns:
      (history, requests): the tokens that stay move up, those that are gone are padding at the end
      of the row; the time since the event before is that since the last one that stayed.
    """
    num_rows, num_tokens = history.items.shape
    chosen_key, domain_key = jax.random.split(key)
    shape = (num_rows, num_tokens + 1)  # one a segment
    of_domain = history.traits[DOMAIN][..., 0]
    has = jnp.zeros((*shape, num_domains + 1), bool)
    has = has.at[jnp.arange(num_rows)[:, None], history.segment_ids, of_domain].set(True)
    # One of those that a window has: a person of one domain is new as often as one of several.
    lots = jax.random.uniform(domain_key, (*shape, num_domains))
    drawn = 1 + jnp.argmax(jnp.where(has[..., 1:], lots, -1.0), axis=-1).astype(jnp.int32)
    hidden = jnp.where(jax.random.bernoulli(chosen_key, rate, shape), drawn, 0)  # 0 = none
    of_tokens = jnp.take_along_axis(hidden, history.segment_ids, axis=1)
    gone = (of_tokens > 0) & (of_domain == of_tokens)
    stays = ~gone & (history.segment_ids > 0)
    order = jnp.argsort(~stays, axis=1, stable=True)
    moved: History = jax.tree.map(
        lambda leaf: jnp.take_along_axis(
            leaf, order.reshape(order.shape + (1,) * (leaf.ndim - 2)), axis=1
        ),
        history,
    )
    kept = jnp.take_along_axis(stays, order, axis=1)
    segment_ids = jnp.where(kept, moved.segment_ids, 0)
    follows = jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1], ((0, 0), (1, 0)))
    since = moved.times - jnp.pad(moved.times[:, :-1], ((0, 0), (1, 0)))
    # A window's first token keeps its gap, which reaches back to before the window. So does the
    # first that stays, unless nothing was before the window either.
    is_first = _first_tokens(history)
    places = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    starts = jax.lax.cummax(jnp.where(is_first, places, 0), axis=1)
    first_gaps = jnp.take_along_axis(history.gaps_s, starts, axis=1)
    first_times = jnp.take_along_axis(history.times, starts, axis=1)
    passed = history.times - first_times
    reached = jnp.minimum(first_gaps, jnp.iinfo(jnp.int32).max - passed) + passed  # no overflow
    reached = jnp.where(first_gaps < 0, -1, reached)
    gaps_s = jnp.where(follows, since, jnp.take_along_axis(reached, order, axis=1))

    # A request sees what stayed of what it saw.
    places = jnp.cumsum(stays, axis=1, dtype=jnp.int32) - 1
    before = jnp.maximum(requests.last_tokens, 0)
    last = jnp.take_along_axis(places, before, axis=1)
    of_last = jnp.take_along_axis(segment_ids, jnp.maximum(last, 0), axis=1)
    sees = (requests.last_tokens >= 0) & (last >= 0) & (of_last == requests.segment_ids)
    gone_s = jnp.take_along_axis(history.times, before, axis=1) - jnp.take_along_axis(
        moved.times, jnp.maximum(last, 0), axis=1
    )
    return dataclasses.replace(moved, segment_ids=segment_ids, gaps_s=gaps_s), dataclasses.replace(
        requests,
        last_tokens=jnp.where(sees, last, -1),
        last_minutes=_earlier(requests.last_minutes, jnp.where(sees, gone_s, 0)),
    )


def _earlier(minutes: jax.Array, seconds: jax.Array) -> jax.Array:
    """So many seconds earlier, rounded down: never later than the event that is the last now."""
    return minutes - -(-seconds // 60)


def _first_tokens(history: History) -> jax.Array:
    """bool [B, S], True where a segment of the row begins."""
    begins = history.segment_ids[:, 1:] != history.segment_ids[:, :-1]
    return jnp.pad(begins, ((0, 0), (1, 0)), constant_values=True)
