"""One training step: hide, predict, differentiate, update. Pure functions, jitted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.config import TrainingConfig
from stt_jax.model.stt import Prediction, SpatiotemporalTransformer
from stt_jax.training.losses import make_softmax, mixture_loss


@struct.dataclass
class TrainState:
    """All that a step changes."""

    step: jax.Array
    params: Any
    opt_state: Any


def make_optimizer(config: TrainingConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip; linear warm-up, then a cosine to zero."""
    schedule = learning_rate_schedule(config, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=_decayed),
    )


def learning_rate_schedule(config: TrainingConfig, num_steps: int) -> optax.Schedule:
    """Step -> learning rate."""
    warmup = max(1, round(config.warmup * num_steps))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(num_steps, warmup + 1)
    )


def init_state(
    model: SpatiotemporalTransformer,
    optimizer: optax.GradientTransformation,
    catalogue: Catalogue,
    history: History,
    requests: Requests,
    seed: int,
) -> TrainState:
    """Fresh parameters, by the seed; the batch gives shapes only."""

    @jax.jit
    def initialise(key: jax.Array) -> TrainState:
        params = model.init(key, catalogue, history, requests, deterministic=True)["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return initialise(jax.random.key(seed))


def hide(requests: Requests, key: jax.Array, config: TrainingConfig) -> Requests:
    """Hides request times and places at random, so that one model answers with or without them.

    A shown place is moved by normal noise first: the place of the target itself would give the
    target away.
    """
    time_key, place_key, noise_key = jax.random.split(key, 3)
    shape = requests.time_known.shape
    show_time = jax.random.bernoulli(time_key, config.known_time_rate, shape)
    show_place = jax.random.bernoulli(place_key, config.known_place_rate, shape)
    noise = config.place_noise_m * jax.random.normal(noise_key, requests.coords.shape)
    return dataclasses.replace(
        requests,
        time_known=requests.time_known & show_time,
        coords=jnp.where(show_place[..., None], requests.coords + noise, jnp.nan),
    )


def make_train_step(
    model: SpatiotemporalTransformer,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step `(state, catalogue, history, requests) -> (state, measures)`.

    Randomness of step n comes from (seed, n), so a run that stops and goes on draws the same.
    The state is donated.
    """

    def loss_fn(
        params: Any, catalogue: Catalogue, history: History, requests: Requests, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        prediction = cast(
            Prediction,
            model.apply(
                {"params": params},
                catalogue,
                history,
                requests,
                deterministic=False,
                rngs={"dropout": key},
            ),
        )
        return mixture_loss(
            prediction,
            requests.targets,
            label_smoothing=config.label_smoothing,
            softmax=make_softmax(config, jax.random.fold_in(key, 1)),
        )

    def train_step(
        state: TrainState, catalogue: Catalogue, history: History, requests: Requests
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        hide_key, dropout_key = jax.random.split(key)
        requests = hide(requests, hide_key, config)
        (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, catalogue, history, requests, dropout_key
        )
        # optax mixes int32 counts with floats: only here is promotion left to the library.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        measures = {"loss": loss, "gradient_norm": optax.global_norm(grads), **sums}
        return TrainState(state.step + 1, params, opt_state), measures

    return jax.jit(train_step, donate_argnums=0)


def _decayed(params: Any) -> Any:
    """True for matrices; not for biases, norms and the encodings' tables."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not any("encodings" in str(key) for key in path),
        params,
    )
