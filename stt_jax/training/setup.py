"""What a training is made of, before anything is written or computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from stt_jax.batch import table_rows
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.pipeline import PersonBatches, TrainingBatches
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets, find_targets
from stt_jax.data.store import VALIDATION
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import live_crowd, model_catalogue
from stt_jax.training import privacy
from stt_jax.training import run as runs
from stt_jax.training.sharding import Placement, check_rows, make_placement
from stt_jax.training.step import TrainState, init_state, make_optimizer, make_train_step


@dataclasses.dataclass(frozen=True)
class Training:
    """What stays the same while a run trains.

    Attributes:
      log, config, protocol, model: the data, how to train, what validations ask, and what learns.
      optimizer, num_steps, batches: made from them.
      placement: the devices; items: the catalogue on them, as training sees it.
      asked_items: the same as validations see it.
      key: of all randomness of the steps.
      account: of a private training; None = not private.
      shapes: of the state, with its shardings.
      targets: what validations ask for.
    """

    log: PreparedLog
    config: TrainingConfig
    protocol: ProtocolConfig
    model: SpatiotemporalTransformer
    optimizer: optax.GradientTransformation
    num_steps: int
    batches: TrainingBatches | PersonBatches
    placement: Placement
    items: Any
    asked_items: Any
    key: jax.Array
    account: privacy.Account | None
    shapes: TrainState
    targets: Targets

    @property
    def shardings(self) -> TrainState:
        """Where each array of the state lives."""
        return jax.tree.map(lambda shape: shape.sharding, self.shapes)

    def put(self, batch: Any) -> Any:
        """A batch of this process's rows, on the devices."""
        rows = self.config.batch_rows
        if self.account is not None:
            rows = privacy.most_people(self.account, self.log.num_train_users)
        return self.placement.put_rows(batch, rows)

    def make_step(self) -> Any:
        """The compiled step on these devices."""
        return make_train_step(
            self.model, self.optimizer, self.config, self.placement, self.shardings, self.account
        )

    def initial_state(self) -> TrainState:
        """Fresh parameters, by the seed."""
        make = jax.jit(init_state, static_argnums=(0, 1, 5), out_shardings=self.shardings)
        batch = self.put(self.batches[0])
        return make(self.model, self.optimizer, self.items, *batch, self.config.seed)


def set_up(
    log: PreparedLog,
    training: TrainingConfig,
    model_config: ModelConfig,
    protocol: ProtocolConfig,
    devices: DeviceConfig,
    secret: int = 0,
) -> Training:
    """Everything that a training needs, without writing or computing anything.

    Args:
      log, training, model_config, protocol, devices: as in `loop.train_model`.
      secret: of a private training, `privacy.secret_of` the run.
    """
    batches: TrainingBatches | PersonBatches
    placement = make_placement(devices)
    model = SpatiotemporalTransformer(runs.fit_to_log(model_config, log), runs.model_sizes(log))
    account, key = None, jax.random.key(training.seed)
    if training.dp_epsilon:
        batches, num_steps, account, key = _private_input(
            log, training, model_config, placement, secret
        )
    else:
        check_rows(training.batch_rows, placement, training.accumulate, "--batch_rows")
        batches = TrainingBatches(
            log,
            window=training.window,
            requests=training.requests,
            batch_rows=training.batch_rows,
            seed=training.seed,
            local_rows=placement.local_rows(training.batch_rows),
        )
        num_steps = batches.num_steps(training.epochs)
    optimizer = make_optimizer(training, num_steps)
    items = dataclasses.replace(
        model_catalogue(log, model.config), target_weights=target_weights(log, training)
    )
    items = placement.put_whole(items, placement.replicated)
    asked_items = items
    if protocol.trends == "live" and items.trends is not None:
        live = live_crowd(log, model.config)
        trends, successions = placement.put_whole(live, placement.replicated)
        asked_items = dataclasses.replace(items, trends=trends, successions=successions)
    history, requests = batches[0]
    shapes = jax.eval_shape(
        lambda: init_state(model, optimizer, items, history, requests, training.seed)
    )
    params = placement.params(shapes.params)
    shardings = dataclasses.replace(
        jax.tree.map(lambda _: placement.replicated, shapes),
        params=params,
        opt_state=placement.optimizer(optimizer, shapes.opt_state, params),
    )
    return Training(
        log=log,
        config=training,
        protocol=protocol,
        model=model,
        optimizer=optimizer,
        num_steps=num_steps,
        batches=batches,
        placement=placement,
        items=items,
        asked_items=asked_items,
        key=key,
        account=account,
        shapes=jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            shapes,
            shardings,
        ),
        targets=_validation_targets(log, training, protocol),
    )


def target_weights(log: PreparedLog, training: TrainingConfig) -> np.ndarray | None:
    """float32 [rows], what a request for each item counts in the loss, 1 in the mean of events.

    n(domain) ** -balance_domains, so that at 1 the domains count the same; None = all alike.
    """
    if not log.domain_values or not training.balance_domains:
        return None
    domains, counts = log.item_domains[1:], log.item_train_counts[1:]
    of_domains = np.bincount(domains, counts, minlength=len(log.domain_values))
    weights = np.maximum(of_domains, 1) ** -training.balance_domains
    weights /= (weights * of_domains).sum() / of_domains.sum()
    rows = np.ones(table_rows(log.num_items), np.float32)
    rows[: log.num_items + 1] = weights[log.item_domains]
    return rows


def _private_input(
    log: PreparedLog,
    training: TrainingConfig,
    model_config: ModelConfig,
    placement: Placement,
    secret: int,
) -> tuple[PersonBatches, int, privacy.Account, jax.Array]:
    """(batches, steps, account, key of the noise) of a private training."""
    # A weight that is counted over everybody moves with each person the gradients of all others;
    # what times are likely are waits of single people.
    counted = {
        "use_crowd=false": model_config.use_crowd,
        "use_popularity=false": model_config.use_popularity,
        "balance_domains=0": training.balance_domains,
        "likely_times=0": model_config.likely_times,
    }
    for without, asked_for in counted.items():
        if asked_for:
            raise ValueError(
                f"--dp_epsilon protects what is learned, not what is counted: give --{without}"
            )
    if placement.mesh.size > 1 or training.accumulate > 1:
        raise NotImplementedError(
            "--dp_epsilon works on one device and without --accumulate: leave out --mesh_data, "
            "--mesh_model and --accumulate"
        )
    options = dict(window=training.window, requests=training.requests, seed=secret)
    rate = training.batch_rows / max(1, log.num_train_users)
    unbounded = PersonBatches(log, batch_rows=1, rate=rate, **options)
    num_steps = unbounded.num_steps(training.epochs)
    account = privacy.make_account(training, log.num_train_users, num_steps)
    rows = privacy.most_people(account, log.num_train_users)
    batches = PersonBatches(log, batch_rows=rows, rate=account.rate, **options)
    words = jax.numpy.asarray([secret >> 32, secret & 0xFFFFFFFF], jax.numpy.uint32)
    return batches, num_steps, account, jax.random.wrap_key_data(words, impl="threefry2x32")


def _validation_targets(
    log: PreparedLog, training: TrainingConfig, protocol: ProtocolConfig
) -> Targets:
    targets = find_targets(log, VALIDATION, targets=protocol.targets, context=protocol.context)
    return targets[targets.known(log)].sample(training.validation_targets, seed=0)
