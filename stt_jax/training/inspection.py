"""What a training would do, without doing it: parameters, placement, operations, memory."""

from __future__ import annotations

import jax
import numpy as np
import rich.table

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.training.setup import Training, set_up
from stt_jax.training.sharding import parameter_name
from stt_jax.training.speed import training_flops


def describe(
    log: PreparedLog,
    training: TrainingConfig,
    model_config: ModelConfig,
    protocol: ProtocolConfig,
    devices: DeviceConfig,
) -> tuple[rich.table.Table, list[str]]:
    """Sets a training up and compiles its step.

    Args:
      log, training, model_config, protocol, devices: as in `train_model`; no run directory needed.

    Returns:
      (table, lines): every parameter with its shape, dtype, placement and bytes on each device; and
      lines with the sums, the operations of a step and its memory on each device.

    Raises:
      ValueError: as `train_model`, but for what concerns the run directory.
    """
    setup = set_up(log, training, model_config, protocol, devices)
    table = rich.table.Table(box=rich.table.box.SIMPLE_HEAD)
    table.add_column("parameter")
    for name in ("shape", "dtype", "split over", "bytes on a device"):
        table.add_column(name, justify="right")
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(setup.shapes.params):
        size = _local_bytes(leaf)
        total += size
        axes = ", ".join(str(axis) for axis in leaf.sharding.spec if axis) or "-"
        table.add_row(
            parameter_name(path), str(list(leaf.shape)), leaf.dtype.name, axes, f"{size:,}"
        )
    optimizer = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(setup.shapes.opt_state))
    return table, [
        f"{sum(leaf.size for leaf in jax.tree.leaves(setup.shapes.params)):,} parameters; on each "
        f"device {total:,} bytes of them and {optimizer:,} of the optimiser",
        *_step_lines(setup),
    ]


def _step_lines(setup: Training) -> list[str]:
    flops = training_flops(setup.model, setup.config)
    step = setup.make_step()
    with jax.set_mesh(setup.placement.mesh):
        compiled = step.lower(setup.shapes, setup.items, *setup.put(setup.batches[0])).compile()
    memory = compiled.memory_analysis()
    rows, row_tokens = setup.batches.shape
    return [
        f"{setup.num_steps:,} steps of {rows} x {row_tokens} tokens, "
        f"{setup.batches.fill:.1%} filled, up to {rows * setup.config.requests:,} requests",
        f"{flops:.3g} floating-point operations of the model in a step",
        f"the compiled step takes on each device {memory.argument_size_in_bytes:,} bytes of "
        f"arguments, of which {memory.alias_size_in_bytes:,} are updated in place, and "
        f"{memory.temp_size_in_bytes:,} bytes while it runs",
    ]


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
