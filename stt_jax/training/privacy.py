"""User-level differential privacy: what one person's whole history can change is bounded.

Each step draws every person with the same probability, clips the gradient of each one's window to
a norm, adds the clipped gradients and Gaussian noise, and divides by the expected number of people:
DP-SGD with a person in the place of an example. Two logs that differ by one person then give
parameters that can be told apart only as far as (epsilon, delta) allow.

What is not covered: the vocabularies and statistics of the prepared log, and the choice of the best
checkpoint and of when to stop, which look at the validation part without noise.

The draws and the noise have to be secret as long as the guarantee shall hold. They come from a key
that the system's random source makes (`noise.key` in the run directory, for its owner only), so
that a stopped run goes on to the same bits; it is removed when the training has ended.

Source: Abadi et al., "Deep learning with differential privacy" (CCS 2016), algorithm 1; McMahan et
al., "Learning differentially private recurrent language models" (ICLR 2018) for people in place of
examples. Differs from them: a step sees one window of each person, drawn by chance. Accounting:
privacy loss distributions of `dp-accounting`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stt_jax.config import TrainingConfig

PRIVATE_CHUNK_ROWS = 4  # people whose gradients, each as large as the parameters, are held at once

_KEY_FILE = "noise.key"
_DISCRETIZATION = 1e-3  # of the privacy loss: coarser rounds epsilon up


@dataclasses.dataclass(frozen=True)
class Account:
    """The mechanism of a run.

    Attributes:
      noise: standard deviation of the noise over the clipping norm.
      rate: probability that a person takes part in a step.
      delta: of the guarantee.
    """

    noise: float
    rate: float
    delta: float

    def epsilon(self, num_steps: int) -> float:
        """What so many steps have spent."""
        return _epsilon(self.noise, self.rate, num_steps, self.delta)


def make_account(config: TrainingConfig, num_people: int, num_steps: int) -> Account:
    """The least noise that keeps all steps within `config.dp_epsilon`.

    Args:
      config: epsilon, delta, and `batch_rows`, the expected number of people in a step.
      num_people: of the training part.
      num_steps: of the whole run.

    Raises:
      ValueError: more people a step than there are, or a delta too large to mean anything.
    """
    if config.batch_rows > num_people:
        raise ValueError(
            f"--batch_rows={config.batch_rows} is the expected number of people in a private step, "
            f"and the training part has {num_people}"
        )
    if config.dp_delta >= 1 / num_people:
        raise ValueError(
            f"--dp_delta={config.dp_delta:g} must be below 1 / {num_people} people: a mechanism "
            "that publishes one person would satisfy it"
        )
    accounting = _accounting()
    rate = config.batch_rows / num_people
    noise = accounting.calibrate_dp_mechanism(
        _fresh_accountant,
        lambda noise: _event(noise, rate, num_steps),
        config.dp_epsilon,
        config.dp_delta,
        tol=1e-3,
    )
    return Account(float(noise), rate, config.dp_delta)


def statement(account: Account, clip_norm: float, num_steps: int) -> str:
    """What a private training promises, and what not, in words."""
    return (
        f"private for people: epsilon {account.epsilon(num_steps):.3f} at delta {account.delta:g} "
        f"after all {num_steps:,} steps; each person takes part in a step with probability "
        f"{account.rate:.3g}, clipped to {clip_norm:g}, noise {account.noise:.3f} times that. Not "
        "covered: vocabularies and statistics of the prepared log, and what is chosen by validation"
    )


def most_people(account: Account, num_people: int) -> int:
    """Rows that hold the people of a step, with a probability of overflow below 1e-12.

    That is eight standard deviations and twenty people above the mean (Bernstein's inequality), in
    whole chunks.
    """
    mean = account.rate * num_people
    rows = mean + 8 * mean**0.5 + 20
    return -int(-rows // PRIVATE_CHUNK_ROWS) * PRIVATE_CHUNK_ROWS


def private_gradients(
    gradient_of_row: Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array]]],
    rows: Any,
    key: jax.Array,
    *,
    account: Account,
    clip_norm: float,
    chunk_rows: int,
    expected_people: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """The noisy mean of clipped gradients.

    Args:
      gradient_of_row: (row, key) -> (gradients, sums) of one person; a row of `rows` keeps its
        leading axis, of length 1. Rows without requests must give zero.
      rows: arrays [N, ...], one row a person.
      key: of the noise and of the rows' own randomness.
      account: how much noise.
      clip_norm: largest global norm of one person's gradient.
      chunk_rows: rows whose gradients are held at once; must divide N.
      expected_people: what the sum is divided by. Not the number drawn, which is private too.

    Returns:
      (gradients, sums): as of `gradient_of_row`; the sums carry no noise and are for the log of
      whoever holds the data.
    """
    noise_key, row_key = jax.random.split(key)

    def clipped(row: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        grads, sums = gradient_of_row(jax.tree.map(lambda array: array[None], row), key)
        norm = optax.global_norm(grads)
        scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
        # A person whose gradient is not finite counts as zero; to stop there would tell on them.
        good = jnp.isfinite(norm)
        grads = jax.tree.map(lambda grad: jnp.where(good, grad * scale, 0.0), grads)
        return grads, jax.tree.map(lambda value: jnp.where(good, value, 0.0), sums)

    def add_chunk(totals: Any, chunk: Any) -> tuple[Any, None]:
        new = jax.tree.map(lambda array: array.sum(0), jax.vmap(clipped)(*chunk))
        return jax.tree.map(jnp.add, totals, new), None

    num_rows = jax.tree.leaves(rows)[0].shape[0]
    keys = jax.random.split(row_key, num_rows)
    chunks = jax.tree.map(
        lambda array: array.reshape(-1, chunk_rows, *array.shape[1:]), (rows, keys)
    )
    shapes = jax.eval_shape(clipped, *jax.tree.map(lambda array: array[0], (rows, keys)))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    (totals, sums), _ = jax.lax.scan(add_chunk, zeros, chunks)

    leaves, tree = jax.tree.flatten(totals)
    keys = jax.random.split(noise_key, len(leaves))
    deviation = account.noise * clip_norm
    noisy = [
        (leaf + deviation * jax.random.normal(key, leaf.shape)) / expected_people
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy), sums


def secret_of(directory: pathlib.Path) -> int:
    """The run's secret key of 64 bits; made where there is none yet.

    Raises:
      ValueError: the file holds something else.
    """
    path = directory / _KEY_FILE
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(8))
    text = path.read_text()
    try:
        return int(text, 16)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, so that the run cannot go on to the same noise; train anew"
        ) from error


def forget_secret(directory: pathlib.Path) -> None:
    """Removes the key: the noise can then no longer be computed and taken away."""
    (directory / _KEY_FILE).unlink(missing_ok=True)


@functools.cache
def _epsilon(noise: float, rate: float, num_steps: int, delta: float) -> float:
    if num_steps == 0:
        return 0.0
    accountant = _fresh_accountant()
    accountant.compose(_event(noise, rate, num_steps))
    return float(accountant.get_epsilon(delta))


def _event(noise: float, rate: float, num_steps: int) -> Any:
    accounting = _accounting()
    step = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    return accounting.SelfComposedDpEvent(step, num_steps)


def _fresh_accountant() -> Any:
    _accounting()
    from dp_accounting import pld

    return pld.PLDAccountant(value_discretization_interval=_DISCRETIZATION)


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError(
            "--dp_epsilon needs the package dp-accounting: pip install 'stt_jax[privacy]'"
        ) from error
    return dp_accounting
