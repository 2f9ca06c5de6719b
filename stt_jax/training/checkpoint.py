"""Checkpoints of a run: written aside and renamed into place, verified whenever one is read.

    checkpoints/STEP/params, optimizer    arrays, as orbax writes them
    checkpoints/STEP/record               whose it is, fingerprints, position in the data, progress

Arrays are written in the background while training goes on. A process that is killed leaves either
a whole checkpoint or a temporary folder, which the next start removes. What no rename can prevent,
a disk or a hand that changed a file, is found by the fingerprints.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from stt_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, besides its parameters.

    Attributes:
      finished: nothing is left to do.
      best, best_step: of the best validation, by `--select_by`.
      validations_since_best: how many were no better.
      epsilon: privacy spent so far, in a private training.
      calibrated: the gates were fitted, or found not to need it.
    """

    finished: bool = False
    best: float = -1.0
    best_step: int = 0
    validations_since_best: int = 0
    epsilon: float | None = None
    calibrated: bool = False


def open_manager(
    directory: pathlib.Path, keep: int, *, read_only: bool = False
) -> ocp.CheckpointManager:
    """Keeps the latest `keep` checkpoints and the one with the best validation.

    A reader says `read_only`, so that it does not clear away what a training run is writing.

    Raises:
      ValueError: the folder of checkpoints cannot be read.
    """
    folder = directory / "checkpoints"
    orbax_log = logging.getLogger("absl")
    level = orbax_log.level
    if read_only:
        orbax_log.setLevel(logging.ERROR)  # it warns that what is read only is read only
    try:
        options = _options(keep, read_only)
        return ocp.CheckpointManager(
            os.path.abspath(folder), options=options, item_names=("params", "optimizer", "record")
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds a damaged checkpoint ({error}); remove the newest of its folders, and "
            "the same command goes on from the one before"
        ) from error
    finally:
        orbax_log.setLevel(level)


def whole_steps(directory: pathlib.Path) -> list[int]:
    """The steps of a run's checkpoints, ascending, by the names of their folders alone."""
    # A checkpoint gets its number for a name when it is whole.
    folders = (directory / "checkpoints").glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def _options(keep: int, read_only: bool) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(max(1, keep)),
                checkpoint_managers.BestN(
                    get_metric_fn=_quality,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        ),
        best_fn=_quality,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )


def _quality(metrics: dict[str, float]) -> float:
    return metrics["quality"] if "quality" in metrics else metrics["mrr"]  # of older runs


def save(
    manager: ocp.CheckpointManager,
    owner: str,
    state: TrainState,
    data_state: Any,
    progress: Progress,
    quality: float | None,
) -> None:
    """Starts writing a checkpoint; `manager.wait_until_finished` waits for it.

    Args:
      manager: of `open_manager`.
      owner: `run.identity`.
      state: to be kept.
      data_state: position of the data iterator, JSON.
      progress: how far the run is.
      quality: of the validation at this step, by `--select_by`; None = there was none.

    Raises:
      OSError: the disk is full or refuses; an earlier background write may be the one that failed.
    """
    _check_room(manager, state)
    step = int(state.step)
    if quality == progress.best and step != progress.best_step:
        # Orbax takes the last of those that are level; the run's best is the first.
        quality = math.nextafter(quality, -math.inf)
    params, optimizer = jax.device_get(_fingerprints((state.params, state.opt_state)))
    record = {
        "owner": owner,
        "step": step,
        "params": [int(value) for value in params],
        "optimizer": [int(value) for value in optimizer],
        "bad_steps": [int(state.bad_steps), int(state.bad_steps_in_a_row)],
        "data": data_state,
        "progress": dataclasses.asdict(progress),
    }
    try:
        manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.opt_state),
                record=ocp.args.JsonSave(record),
            ),
            # Never the best unless it is the only one.
            metrics={"quality": -1.0 if quality is None else quality},
        )
    except Exception as error:
        raise write_error(manager, error) from error


def _check_room(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Asks the disk first: a write that fails halfway is no less safe, but not as easily told."""
    needed = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0  # of what several devices hold one copy is written
    )
    free = shutil.disk_usage(manager.directory).free
    if free < needed:
        raise write_error(manager, OSError(f"{free:,} bytes are free and it has {needed:,}"))


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits for background writes.

    Raises:
      OSError: one has failed.
    """
    try:
        manager.wait_until_finished()
    except Exception as error:
        raise write_error(manager, error) from error


def write_error(manager: ocp.CheckpointManager, error: Exception) -> OSError:
    """What to tell of a checkpoint that could not be written."""
    reason = " ".join(str(error).split())[:300]
    return OSError(
        f"a checkpoint could not be written to {manager.directory} ({reason}); make room or mend "
        "the folder, and the same command goes on from the newest one that is whole"
    )


def restore(
    manager: ocp.CheckpointManager, shapes: TrainState, owner: str
) -> tuple[TrainState, Progress, Any]:
    """Reads the latest checkpoint.

    Args:
      manager: of `open_manager`, with at least one step.
      shapes: of the state, with the shardings that it shall have now.
      owner: `identity` of the run that goes on.

    Returns:
      (state, progress, position of the data iterator).

    Raises:
      ValueError: the checkpoint is damaged or of another run; names the newest that is good.
    """
    step = manager.latest_step()
    try:
        return _restore_step(manager, step, shapes, owner)
    except ValueError as error:
        good = _newest_good(manager, step, shapes, owner)
        folder = manager.directory / str(step)
        advice = f"no other is good: remove {manager.directory} to begin again"
        if good is not None:
            advice = f"the newest good one is {good}: remove {folder} to go on from there"
        raise ValueError(f"{folder} {error}; {advice}") from error


def _newest_good(
    manager: ocp.CheckpointManager, before: int, shapes: TrainState, owner: str
) -> int | None:
    for step in sorted(manager.all_steps(), reverse=True):
        if step < before:
            try:
                _restore_step(manager, step, shapes, owner)
            except ValueError:
                continue
            return step
    return None


def _restore_step(
    manager: ocp.CheckpointManager, step: int, shapes: TrainState, owner: str
) -> tuple[TrainState, Progress, Any]:
    record = _read_record(manager, step, owner)
    trees = _read(
        manager,
        step,
        params=ocp.args.StandardRestore(shapes.params),
        optimizer=ocp.args.StandardRestore(shapes.opt_state),
    )
    for name in ("params", "optimizer"):
        _check_fingerprints(trees[name], record[name])

    def count(value: int, like: Any) -> jax.Array:
        return jax.device_put(jnp.asarray(value, jnp.int32), like.sharding)

    bad_steps, in_a_row = record["bad_steps"]
    state = TrainState(
        count(step, shapes.step),
        trees["params"],
        trees["optimizer"],
        count(bad_steps, shapes.bad_steps),
        count(in_a_row, shapes.bad_steps_in_a_row),
    )
    progress = dict(record["progress"])
    if "best_mrr" in progress:  # of older runs, as in `_quality`
        progress["best"] = progress.pop("best_mrr")
    return state, Progress(**progress), record["data"]


def restore_params(manager: ocp.CheckpointManager, owner: str) -> tuple[Any, int]:
    """The parameters with the best validation, or the latest where nothing was validated.

    Returns:
      (params, step).

    Raises:
      ValueError: there is no checkpoint, or it is damaged or of another run.
    """
    step = manager.best_step()
    step = manager.latest_step() if step is None else step
    if step is None:
        raise ValueError(f"{manager.directory} holds no checkpoint yet; train the run first")
    try:
        record = _read_record(manager, step, owner)
        # They may have been written by more devices than there are here.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        restore = ocp.args.StandardRestore(fallback_sharding=here)
        params = _read(manager, step, params=restore)["params"]
        _check_fingerprints(params, record["params"])
    except ValueError as error:
        raise ValueError(
            f"{manager.directory / str(step)} {error}; remove it to use the best of the others"
        ) from error
    return jax.tree.map(jnp.asarray, params), step


def spent_epsilon(manager: ocp.CheckpointManager, owner: str) -> float | None:
    """What a private training has spent until its latest checkpoint; None = it is not private.

    The latest, whichever is used: the best was chosen by looking at all of them.

    Raises:
      ValueError: that checkpoint is damaged or of another run.
    """
    step = manager.latest_step()
    try:
        return _read_record(manager, step, owner)["progress"]["epsilon"]
    except ValueError as error:
        raise ValueError(
            f"{manager.directory / str(step)} {error}; it says what privacy is spent: train the "
            "run again"
        ) from error


def _read_record(manager: ocp.CheckpointManager, step: int, owner: str) -> dict[str, Any]:
    record = _read(manager, step, record=ocp.args.JsonRestore())["record"]
    try:
        found = record["owner"], record["step"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"is damaged (its record lacks {error})") from error
    if found != (owner, step):
        raise ValueError(f"is step {found[1]} of run {found[0]}, not step {step} of run {owner}")
    return record


def _read(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax and its stores raise whatever they run into
        raise ValueError(f"is damaged ({' '.join(str(error).split())[:200]})") from error


def _check_fingerprints(tree: Any, expected: list[int]) -> None:
    found = [int(value) for value in jax.device_get(_fingerprints((tree,))[0])]
    if found != expected:
        raise ValueError("is damaged (its arrays are not those that were written)")


@jax.jit
def _fingerprints(trees: tuple[Any, ...]) -> tuple[list[jax.Array], ...]:
    """A uint32 a leaf: its bits, each word times an odd number of its own, summed modulo 2^32.

    Integer sums have no order, so that any sharding gives the same, without moving a leaf.
    """

    def fingerprint(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        words = words.astype(jnp.uint32)
        index = jnp.zeros(words.shape, jnp.uint32)
        for axis, length in enumerate(words.shape):
            index = index * jnp.uint32(length) + jax.lax.broadcasted_iota(
                jnp.uint32, words.shape, axis
            )
        return (words * (2 * index + 1)).sum(dtype=jnp.uint32)

    return tuple([fingerprint(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees)
