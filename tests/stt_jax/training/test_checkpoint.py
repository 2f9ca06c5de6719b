"""A checkpoint comes back as it was, or not at all."""

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.training import checkpoint
from stt_jax.training.checkpoint import Progress
from stt_jax.training.setup import set_up
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=20, seed=6)
MODEL = ModelConfig(
    width=8, num_heads=2, num_layers=1, use_place=False, use_sequel=False, use_crowd=False
)
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=8)
OWNER = "0123456789abcdef"

# Where one array cannot be read, orbax may drop the coroutines of the others half way, and Python
# says so when it collects them; or a thread of the array store ends later than orbax's event loop.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what}:pytest.PytestUnraisableExceptionWarning")
    for what in (
        "Exception ignored in.*_read_array",
        "(?s)Exception ignored in. None.*Event loop is closed",
    )
]


@pytest.fixture(autouse=True)
def dropped_coroutines_are_collected_here():
    """In the test that dropped them, not in whichever runs as the collector comes by."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def setup():
    return set_up(LOG, TRAINING, MODEL, ProtocolConfig(), DeviceConfig())


@pytest.fixture(scope="module")
def states(setup):
    """The state as it might be after steps 10, 20 and 30."""
    initial = setup.initial_state()

    def after(step):
        params = jax.tree.map(lambda leaf: leaf + step, initial.params)
        count = jax.numpy.asarray(step, jax.numpy.int32)
        return dataclasses.replace(initial, step=count, params=params, bad_steps=count // 10)

    return {step: after(step) for step in (10, 20, 30)}


@pytest.fixture(scope="module")
def written(states, tmp_path_factory):
    directory = tmp_path_factory.mktemp("written")
    with checkpoint.open_manager(directory, keep=5) as manager:
        for step, state in states.items():
            progress = Progress(best_step=step)
            checkpoint.save(manager, OWNER, state, {"at": step}, progress, step / 100)
        checkpoint.wait(manager)
    return directory


@pytest.fixture
def directory(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def restore(directory, setup, owner=OWNER):
    with checkpoint.open_manager(directory, keep=5) as manager:
        return checkpoint.restore(manager, setup.shapes, owner)


def test_everything_comes_back(directory, setup, states):
    state, progress, position = restore(directory, setup)
    jax.tree.map(np.testing.assert_array_equal, state, states[30])
    assert progress == Progress(best_step=30)
    assert position == {"at": 30}


def test_it_comes_back_onto_another_mesh(directory, states):
    devices = DeviceConfig(mesh_data=2, mesh_model=4, fsdp=True)
    state, _, _ = restore(directory, set_up(LOG, TRAINING, MODEL, ProtocolConfig(), devices))
    jax.tree.map(np.testing.assert_array_equal, state, states[30])
    table = state.params["items"]["ids"]
    assert table.addressable_shards[0].data.shape[0] == table.shape[0] // 4


def test_the_best_is_what_is_used(directory, states):
    with checkpoint.open_manager(directory, keep=5) as manager:
        params, step = checkpoint.restore_params(manager, OWNER)
    assert step == 30
    jax.tree.map(np.testing.assert_array_equal, params, states[30].params)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def largest(directory, step, item):
    files = [path for path in (directory / f"checkpoints/{step}/{item}").rglob("*")]
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["params", "optimizer", "record"])
@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "one bit"])
def test_a_damaged_file_is_found_and_the_newest_good_one_named(directory, setup, item, damage):
    damage(largest(directory, 30, item))
    message = r"checkpoints.30 is .*the newest good one is 20: remove .*checkpoints.30 to go on"
    with pytest.raises(ValueError, match=message):
        restore(directory, setup)
    shutil.rmtree(directory / "checkpoints/30")
    assert int(restore(directory, setup)[0].step) == 20


def test_a_missing_item_is_found(directory, setup):
    shutil.rmtree(directory / "checkpoints/30/optimizer")
    with pytest.raises(ValueError, match=r"30 is damaged .*the newest good one is 20"):
        restore(directory, setup)


def test_with_no_good_one_left_nothing_is_begun_anew_in_silence(directory, setup):
    for step in (10, 20, 30):
        truncate(largest(directory, step, "params"))
    with pytest.raises(ValueError, match=r"no other is good: remove .*checkpoints to begin again"):
        restore(directory, setup)


def test_swapped_and_foreign_checkpoints_are_refused(directory, setup):
    shutil.rmtree(directory / "checkpoints/30")
    shutil.copytree(directory / "checkpoints/10", directory / "checkpoints/30")
    with pytest.raises(ValueError, match=f"is step 10 of run {OWNER}, not step 30"):
        restore(directory, setup)
    with pytest.raises(ValueError, match=f"is step 10 of run {OWNER}, not step 30 of run another"):
        restore(directory, setup, owner="another")


def test_a_run_that_named_its_quality_mrr_is_read(directory, setup):
    folder = directory / "checkpoints/30"
    (folder / "metrics/metrics").write_text(json.dumps({"mrr": 0.9}))
    path = folder / "record/metadata"
    record = json.loads(path.read_text())
    del record["progress"]["best"]
    record["progress"]["best_mrr"] = 0.9
    path.write_text(json.dumps(record))
    _, progress, _ = restore(directory, setup)
    assert progress == Progress(best=0.9, best_step=30)
    with checkpoint.open_manager(directory, keep=5) as manager:
        assert manager.best_step() == 30


def test_a_damaged_metric_says_which_folder_to_remove(directory):
    path = directory / "checkpoints/30/metrics/metrics"
    assert json.loads(path.read_text()) == {"quality": 0.3}
    truncate(path)
    with pytest.raises(ValueError, match="holds a damaged checkpoint"):
        checkpoint.open_manager(directory, keep=5)


def test_what_a_killed_process_left_half_written_is_removed(directory, setup):
    half = directory / "checkpoints/40.orbax-checkpoint-tmp"
    shutil.copytree(directory / "checkpoints/30", half)
    shutil.rmtree(half / "optimizer")
    assert int(restore(directory, setup)[0].step) == 30
    assert not half.exists()


def test_what_many_devices_wrote_one_can_read(states, tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with checkpoint.open_manager(tmp_path, keep=1) as manager:
        state = jax.device_put(states[10], everywhere)
        checkpoint.save(manager, OWNER, state, {}, Progress(), 0.1)
        checkpoint.wait(manager)
    elsewhere = f"""
        import jax, pathlib
        from stt_jax.training import checkpoint

        assert jax.device_count() == 1
        with checkpoint.open_manager(pathlib.Path({str(tmp_path)!r}), 1, read_only=True) as manager:
            params, step = checkpoint.restore_params(manager, {OWNER!r})
        print(step, sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(params)))
    """
    environment = {**os.environ, "XLA_FLAGS": ""}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(elsewhere)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(states[10].params))
    assert found[0] == "10"
    np.testing.assert_allclose(float(found[1]), expected, rtol=1e-6)


def test_room_is_asked_for_one_copy_of_what_every_device_holds(tmp_path, monkeypatch):
    held_by_four = set_up(LOG, TRAINING, MODEL, ProtocolConfig(), DeviceConfig(mesh_data=4))
    with jax.set_mesh(held_by_four.placement.mesh):
        state = held_by_four.initial_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with checkpoint.open_manager(tmp_path, keep=1) as manager:
        for free, fits in ((size, True), (size - 1, False)):
            usage = shutil._ntuple_diskusage(10 * size, 0, free)
            monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
            if fits:
                checkpoint._check_room(manager, state)
            else:
                with pytest.raises(OSError, match=f"{free:,} bytes are free and it has {size:,}"):
                    checkpoint._check_room(manager, state)
