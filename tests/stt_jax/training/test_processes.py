"""Training as several processes, and as one that is killed: run as a person runs it."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import termios
import time

import numpy as np
import pytest

from benchmarks import bench_resume
from benchmarks.bench_resume import QUICK, make_log, newest_checkpoint, reports


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return make_log(tmp_path_factory.mktemp("city"))


def command(log, run, *options):
    return bench_resume.command(log, run, *QUICK, *options)


def environment(num_devices):
    flags = re.sub(r"device_count=\d+", f"device_count={num_devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(log, run, *options, num_devices=1):
    return subprocess.Popen(
        command(log, run, *options),
        env=environment(num_devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_train_as_one_and_one_goes_on_where_they_stopped(log, tmp_path):
    whole = start(log, tmp_path / "whole", "--epochs=4")
    shared = tmp_path / "shared"
    together = [
        "--epochs=4",
        f"--coordinator=localhost:{free_port()}",
        "--num_processes=2",
        "--mesh_data=2",
        "--mesh_model=2",
    ]
    pair = [start(log, shared, *together, f"--process_id={i}", num_devices=2) for i in (0, 1)]
    while newest_checkpoint(shared) < 21 and all(process.poll() is None for process in pair):
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGTERM)  # only one is told: both have to stop after the same step
    said = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [130, 130], said
    assert "2 x 2 of 4 cpu devices in 2 processes" in said[0]
    assert "of 4 cpu devices" not in said[1], "one process reports"
    stopped = int(re.search(r"stopped at step (\d+)", said[0])[1])
    assert stopped == newest_checkpoint(shared)

    on = start(log, shared, "--epochs=4")
    said, _ = on.communicate(timeout=300)
    assert on.returncode == 0, said
    assert f"going on from step {stopped}" in said
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    expected, found = reports(tmp_path / "whole"), reports(shared)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert stopped < expected[-1]["step"]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (found, expected)]
    # Sums in another order: the last bit of each, which training makes larger.
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-3)


def test_killed_and_started_again_a_run_ends_with_the_same_bits(monkeypatch):
    # As the others here: what one of them has compiled, the next need not.
    monkeypatch.setenv("XLA_FLAGS", environment(1)["XLA_FLAGS"])
    assert bench_resume.main(["--quick"]) == 0


def test_ctrl_c_in_a_terminal_writes_a_checkpoint_and_shows_a_progress_bar(log, tmp_path):
    terminal, far_end = os.openpty()
    arguments = command(log, tmp_path / "run", "--epochs=1000", "--checkpoint_every=0")
    process = subprocess.Popen(
        arguments,
        env={**environment(1), "TERM": "xterm", "COLUMNS": "120"},
        stdin=far_end,
        stdout=far_end,
        stderr=far_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that ^C reaches it
    )
    os.close(far_end)
    said = b""
    while b"events/s" not in said and process.poll() is None:
        said += os.read(terminal, 10_000)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while more := os.read(terminal, 10_000):
            said += more
    assert process.wait(timeout=300) == 130, said.decode()
    assert re.search(rb"step \d+/\d+", said), "a progress bar"
    stopped = int(re.search(rb"stopped at step (\d+)", said)[1])
    assert stopped == newest_checkpoint(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB; only root can make one, others get the next best thing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        yield disk, ["prlimit", "--fsize=20000"]
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], check=True)
    yield disk, []
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(log, small_disk):
    disk, limit = small_disk
    arguments = command(log, disk / "run", "--epochs=4")
    result = subprocess.run(
        [*limit, *arguments], env=environment(1), capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "could not be written" in errors[0]
    if not limit:
        assert "Traceback" not in result.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
    finished = subprocess.run(arguments, env=environment(1), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(log, tmp_path):
    options = ["--dry_run", "--mesh_data=2", "--mesh_model=2", "--fsdp"]
    result = subprocess.run(
        command(log, tmp_path / "run", *options),
        env=environment(4),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"items/ids +\[256, 16\] +float32 +model +8,192", result.stdout)
    assert re.search(r"blocks_0/wide/kernel +\[16, 32\] +float32 +data +1,024", result.stdout)
    assert "floating-point operations" in result.stdout
    assert "bytes while it runs" in result.stdout
    assert not (tmp_path / "run").exists()
