"""One training step: hide, predict, differentiate, update. Pure functions, jitted once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.config import TrainingConfig
from stt_jax.model.mixture import Prediction
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.training.input_masking import hide
from stt_jax.training.losses import make_softmax, mixture_loss
from stt_jax.training.privacy import PRIVATE_CHUNK_ROWS, Account, private_gradients
from stt_jax.training.sharding import Placement


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: int32, steps so far.
      params, opt_state: float32, and what the optimiser keeps of them.
      bad_steps: int32, steps that were left out because loss or gradient was not finite.
      bad_steps_in_a_row: int32, how many of the last ones.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    bad_steps: jax.Array
    bad_steps_in_a_row: jax.Array


def make_optimizer(config: TrainingConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip; linear warm-up, then a cosine to zero."""
    schedule = learning_rate_schedule(config, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=_decayed),
    )


def learning_rate_schedule(config: TrainingConfig, num_steps: int) -> optax.Schedule:
    """Step -> learning rate; with a warm-up it begins at zero, unless there is but one step."""
    if not config.warmup or num_steps == 1:
        return optax.cosine_decay_schedule(config.learning_rate, num_steps)
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
    """Fresh parameters, by the seed; the batch gives shapes only. To be traced by `jax.jit`."""
    params = model.init(jax.random.key(seed), catalogue, history, requests, deterministic=True)[
        "params"
    ]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero)


def make_train_step(
    model: SpatiotemporalTransformer,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
    placement: Placement | None = None,
    shardings: Any = None,
    account: Account | None = None,
) -> Any:
    """The jitted step `(state, catalogue, history, requests, key) -> (state, measures)`.

    Randomness of step n comes from (key, n), so a run that stops and goes on draws the same; the
    key is that of `config.seed` where none is given.
    A loss or gradient that is not finite changes nothing but the counts of bad steps. The state is
    donated.

    Args:
      model, optimizer, config: what to train, and how.
      placement: the devices; None = one.
      shardings: of the new state; None leaves them to the compiler.
      account: makes the step private, its rows one person each; see `training.privacy`.
    """
    loss_of = functools.partial(_total_loss, model=model, config=config, placement=placement)
    differentiate = jax.grad(loss_of, has_aux=True)

    def train_step(
        state: TrainState,
        catalogue: Catalogue,
        history: History,
        requests: Requests,
        key: jax.Array | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed) if key is None else key, state.step)
        hide_key, dropout_key = jax.random.split(key)
        history, requests = hide(history, requests, hide_key, config)

        def of_part(part: Any, key: jax.Array) -> Any:
            return differentiate(state.params, catalogue, *part, key)

        def of_person(part: Any, key: jax.Array) -> Any:
            """The gradient of a person's mean loss, so that long histories don't weigh more."""
            grads, sums = of_part(part, key)
            num_requests = jnp.maximum(sums["requests"], 1.0)
            return jax.tree.map(lambda grad: grad / num_requests, grads), sums

        if account is None:
            grads, sums = _over_parts(of_part, (history, requests), dropout_key, config.accumulate)
            num_requests = jnp.maximum(sums["requests"], 1.0)
            grads = jax.tree.map(lambda grad: grad / num_requests, grads)
        else:
            grads, sums = private_gradients(
                of_person,
                (history, requests),
                dropout_key,
                account=account,
                clip_norm=config.dp_clip,
                chunk_rows=PRIVATE_CHUNK_ROWS,
                expected_people=config.batch_rows,
            )
            num_requests = jnp.maximum(sums["requests"], 1.0)
        measures = {
            **sums,
            "loss": sums["loss"] / num_requests,
            "gradient_norm": optax.global_norm(grads),
        }
        good = jnp.isfinite(measures["loss"]) & jnp.isfinite(measures["gradient_norm"])
        state = _apply_update(optimizer, state, grads, good)
        return state, measures | {"bad_steps_in_a_row": state.bad_steps_in_a_row}

    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings)


def _total_loss(
    params: Any,
    catalogue: Catalogue,
    history: History,
    requests: Requests,
    key: jax.Array,
    *,
    model: SpatiotemporalTransformer,
    config: TrainingConfig,
    placement: Placement | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss summed over the requests, and all that is summed over them."""
    if placement is not None and placement.fsdp:
        # Fetch the parts of each parameter: left to itself the compiler moves activations.
        whole = dataclasses.replace(placement, fsdp=False).params(params)
        params = jax.lax.with_sharding_constraint(params, whole)
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
    loss, sums = mixture_loss(
        prediction,
        requests.targets,
        label_smoothing=config.label_smoothing,
        generate_weight=config.generate_weight,
        target_weights=catalogue.target_weights,
        softmax=make_softmax(config, jax.random.fold_in(key, 1)),
    )
    total = loss * sums["requests"]
    return total, {"loss": total, **sums}


def _apply_update(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any, good: jax.Array
) -> TrainState:
    """The state after a step; where it is not `good`, bool [], only the counts change."""
    # optax mixes int32 counts with floats: only here is promotion left to the library.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    bad = 1 - good.astype(jnp.int32)
    return TrainState(
        state.step + 1,
        params,
        opt_state,
        state.bad_steps + bad,
        bad * (state.bad_steps_in_a_row + 1),
    )


def _over_parts(
    of_part: Callable[[Any, jax.Array], Any], batch: Any, key: jax.Array, num_parts: int
) -> Any:
    """The sum of `of_part(part, key of the part)` over the parts of a batch, one after the other.

    Part i holds rows i, i + num_parts, ...: some of every device's, where devices share the rows.
    """
    if num_parts == 1:
        return of_part(batch, key)

    def split(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(-1, num_parts, *array.shape[1:]), 1, 0)

    def add_part(sums: Any, part_and_index: Any) -> tuple[Any, None]:
        part, index = part_and_index
        new = of_part(part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, sums, new), None

    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(of_part, jax.tree.map(lambda array: array[0], parts), key)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    sums, _ = jax.lax.scan(add_part, zeros, (parts, jnp.arange(num_parts)))
    return sums


def _decayed(params: Any) -> Any:
    """True for matrices; not for biases, norms and the encodings' tables."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not any("encodings" in str(key) for key in path),
        params,
    )
