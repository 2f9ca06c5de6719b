"""Where everything lives on the device mesh: one table for the parameters, and rows for batches.

A mesh has two axes. Batches are split over `data`; the tables of items and people, and with them
the output layer, are split by rows over `model`; all other parameters are on every device, or with
`--fsdp` split over `data` too. The step is one `jax.jit` for all meshes: the compiler puts in the
collectives that these placements imply.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stt_jax.batch import ROW_MULTIPLE
from stt_jax.config import DeviceConfig
from stt_jax.mesh import DATA, MODEL

BY_ROWS = PartitionSpec(MODEL)
DENSE = PartitionSpec()  # with --fsdp split over `data`, along the longest axis that divides

# Every parameter has the place of the first rule that matches its whole path.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"items/ids", BY_ROWS),
    (r"generate/bias", BY_ROWS),
    (r"decoder/people", BY_ROWS),
    (r"items/(categories|trait_.+|place/kernel)", DENSE),
    (r"decoder/domains", DENSE),
    (r"(events|blocks_\d+|decoder|generate|pointer_keys|pointer|sequel|mixer|booster)/.+", DENSE),
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and how parameters are laid out on it."""

    mesh: Mesh
    fsdp: bool = False

    @property
    def replicated(self) -> NamedSharding:
        """On every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_row(self) -> NamedSharding:
        """Rows of a batch over `data`."""
        return NamedSharding(self.mesh, PartitionSpec(DATA))

    def params(self, shapes: Any) -> Any:
        """The sharding of each parameter.

        Args:
          shapes: the parameters, or anything with their tree and shapes.

        Raises:
          ValueError: a parameter that no rule names.
        """

        def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            spec = find_rule(parameter_name(path))
            if spec == DENSE and self.fsdp:
                spec = self._split_over_data(leaf.shape)
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(place, shapes)

    def optimizer(self, optimizer: optax.GradientTransformation, shapes: Any, params: Any) -> Any:
        """The sharding of an optimiser's state: what belongs to a parameter lies beside it.

        Args:
          optimizer: whose state it is.
          shapes: of the state.
          params: of `self.params`.
        """
        return optax.tree.map_params(
            optimizer,
            lambda _, sharding: sharding,
            shapes,
            params,
            transform_non_params=lambda _: self.replicated,
        )

    def put_rows(self, tree: Any, num_rows: int) -> Any:
        """A batch on the devices.

        Args:
          tree: arrays with the rows that `local_rows` names.
          num_rows: rows of the whole batch, of all processes.
        """

        def put(array: Any) -> jax.Array:
            array = np.asarray(array)
            shape = (num_rows, *array.shape[1:])
            return jax.make_array_from_process_local_data(self.by_row, array, shape)

        return jax.tree.map(put, tree)

    def put_whole(self, tree: Any, shardings: Any) -> Any:
        """Arrays that every process has whole, on the devices.

        Args:
          tree: numpy arrays.
          shardings: one sharding, or a tree of them.
        """

        def put(array: Any, sharding: NamedSharding) -> jax.Array:
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        if isinstance(shardings, NamedSharding):
            return jax.tree.map(lambda array: put(array, shardings), tree)
        return jax.tree.map(put, tree, shardings)

    def local_rows(self, num_rows: int) -> range:
        """The rows of a batch that this process feeds its devices with."""
        indices = self.by_row.addressable_devices_indices_map((num_rows,)).values()
        spans = [index[0].indices(num_rows) for index in indices if index is not None]
        return range(min(span[0] for span in spans), max(span[1] for span in spans))

    def _split_over_data(self, shape: tuple[int, ...]) -> PartitionSpec:
        size = self.mesh.shape[DATA]
        divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
        if not divisible:
            return DENSE
        longest = max(divisible, key=lambda axis: shape[axis])
        return PartitionSpec(*(DATA if axis == longest else None for axis in range(len(shape))))


def make_placement(config: DeviceConfig) -> Placement:
    """The mesh that the flags ask for, over the devices of all processes.

    Raises:
      ValueError: the devices do not make such a mesh, or leave a process without one.
    """
    devices = jax.devices()
    data, model = config.mesh_data, config.mesh_model
    flags = f"--mesh_data={data} --mesh_model={model}"
    if data == -1:
        data = len(devices) // model
    if model == -1:
        model = len(devices) // data
    if model > 0 and ROW_MULTIPLE % model:
        raise ValueError(
            f"--mesh_model={config.mesh_model} makes {model} devices share the rows of the tables; "
            f"it must be a power of two up to {ROW_MULTIPLE}"
        )
    if data * model > len(devices) or data * model < 1:
        raise ValueError(
            f"{flags} needs {max(1, data) * max(1, model)} devices and there are {len(devices)} "
            f"({devices[0].platform}); -1 takes the rest"
        )
    if jax.process_count() > 1 and data * model != len(devices):
        raise ValueError(
            f"{flags} uses {data * model} of the {len(devices)} devices of {jax.process_count()} "
            "processes; a mesh over processes uses them all: give -1 for one of the two"
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    # Auto: the placements of the arguments rule, and the compiler derives the rest from them.
    return Placement(Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2), config.fsdp)


def check_rows(num_rows: int, placement: Placement, accumulate: int, flag: str) -> None:
    """Raises ValueError unless the rows of a batch can be shared out evenly."""
    unit = placement.mesh.shape[DATA] * accumulate
    if num_rows % unit:
        below, above = num_rows // unit * unit, -(-num_rows // unit) * unit
        parts = f"{placement.mesh.shape[DATA]} devices on mesh axis '{DATA}'"
        parts += f" times --accumulate={accumulate}" if accumulate > 1 else ""
        use = f"{below} or {above}" if below else f"{above}"
        raise ValueError(f"{flag}={num_rows} does not divide over {parts}; use {use}")


def find_rule(name: str) -> PartitionSpec:
    """The place of a parameter.

    Args:
      name: its path, "blocks_0/query/kernel".

    Raises:
      ValueError: no rule of `RULES` matches.
    """
    for pattern, spec in RULES:
        if re.fullmatch(pattern, name):
            return spec
    raise ValueError(
        f"parameter {name} matches no rule; add one to RULES in stt_jax/training/sharding.py"
    )


def parameter_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf of a parameter tree as one word, "blocks_0/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def connect(config: DeviceConfig, initialize: Callable[..., None] | None = None) -> None:
    """Cuts the CPU into devices and joins the processes of a run, before a device is touched.

    Args:
      config: `coordinator` empty: this process is alone; "auto": found from SLURM, Kubernetes,
        Open MPI or the cloud by jax.distributed; else host:port of process 0.
      initialize: stands in for `jax.distributed.initialize` in tests.

    Raises:
      ValueError: the cluster cannot be found or joined.
      RuntimeError: a device has been touched.
    """
    if config.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if not config.coordinator:
        return
    initialize = initialize or jax.distributed.initialize
    try:
        if config.coordinator == "auto":
            initialize()
        else:
            initialize(config.coordinator, config.num_processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--coordinator={config.coordinator} could not be joined ({error}); give "
            "--coordinator=host:port --num_processes=N --process_id=0..N-1 to every process"
        ) from error
