"""The weights of the mixture's sources, moved a little to what is asked once training has ended.

Training asks at a time when everything is fresh. A model is asked later: what the crowd did is old
then, articles have aged, and the sources are worth something else than what their gate learned. One
number a source, added to the gate's logits, is found on the validation part:

    b = argmin  mean_targets -log [sum_m g_m p_m(target) / sum_m g_m p_m(allowed)] + STIFFNESS |b|^2
    g = softmax(l + b),  allowed: what a person has not had, with --seen=leave_out; else everything

Source: recalibration by a bias on the logits of a mixture's gate, after Guo et al., On Calibration
of Modern Neural Networks, ICML 2017, section 4.2 (vector scaling). Differs from it: the biases are
those of sources, not of classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.data.protocol import Targets
from stt_jax.data.store import PreparedLog
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.training.ranks import MODES, asked_batches, in_mode
from stt_jax.training.sharding import Placement

STIFFNESS = 1e-3
_NUM_STEPS = 400
_RATE = 0.05
_TINY = 1e-12  # probability of what no source names


def fit_gates(
    model: SpatiotemporalTransformer,
    params: Any,
    catalogue: Catalogue,
    log: PreparedLog,
    targets: Targets,
    *,
    window: int,
    leave_out_seen: bool,
    name_domains: bool,
    placement: Placement,
) -> Any:
    """The parameters with the mixture's gate fitted to some targets, in both request modes.

    Args:
      model, params, catalogue: the model's.
      log, targets, window, leave_out_seen, name_domains, placement: as in `ranks.model_ranks`.

    Returns:
      As `params`; what is not the gate's bias is the same.
    """
    found = _target_masses(
        model, params, catalogue, log, targets,
        window=window, leave_out_seen=leave_out_seen, name_domains=name_domains,
        placement=placement,
    )  # fmt: skip
    added = find_biases(*found)
    gate = params["mixer"]["gate"]
    moved = jax.device_put(gate["bias"] + added, gate["bias"].sharding)
    return {**params, "mixer": {**params["mixer"], "gate": {**gate, "bias": moved}}}


def find_biases(
    log_gates: np.ndarray, masses: np.ndarray, allowed_masses: np.ndarray
) -> np.ndarray:
    """The b of the formula above, float32 [1 + M].

    Args:
      log_gates: float32 [N, 1 + M], log-weights of the sources for every target.
      masses: float32 [N, 1 + M], what each source says of it.
      allowed_masses: float32 [N, 1 + M], what each source says of all that is allowed.
    """

    def loss(added: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(log_gates + added[None])
        probabilities, allowed = (
            jnp.maximum(jnp.sum(weights * mass, axis=-1), _TINY)
            for mass in (masses, allowed_masses)
        )
        fit = jnp.mean(jnp.log(allowed) - jnp.log(probabilities))
        return fit + STIFFNESS * jnp.sum(jnp.square(added))

    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _NUM_STEPS))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        added, state = carry
        with jax.numpy_dtype_promotion("standard"):  # as in `training.step`
            updates, state = optimizer.update(jax.grad(loss)(added), state)
        return (optax.apply_updates(added, updates), state), None

    start = jnp.zeros(masses.shape[-1])
    (added, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=_NUM_STEPS)
    return np.asarray(added)


def _target_masses(
    model: SpatiotemporalTransformer,
    params: Any,
    catalogue: Catalogue,
    log: PreparedLog,
    targets: Targets,
    **asking: Any,
) -> list[np.ndarray]:
    """Results of `target_masses` for every target in every mode, float32 [modes * T, 1 + M]."""

    @jax.jit
    def ask(
        params: Any, catalogue: Catalogue, history: History, requests: Requests, allowed: Any
    ) -> list[Any]:
        variables = {"params": params}
        states = model.apply(variables, history, deterministic=True, method=model.encode)
        return [
            model.apply(
                variables,
                catalogue,
                history,
                in_mode(requests, mode),
                states,
                allowed,
                method=model.target_masses,
            )
            for mode in MODES
        ]

    found: list[list[np.ndarray]] = []
    for history, requests, allowed, index in asked_batches(log, targets, **asking):
        for of_mode in ask(params, catalogue, history, requests, allowed):
            whole = multihost_utils.process_allgather(of_mode, tiled=True)
            found.append([np.asarray(array)[index >= 0] for array in whole])
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
