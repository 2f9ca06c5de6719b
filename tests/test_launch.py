"""The launch files name flags that exist, and the shell can read them."""

import os
import pathlib
import re
import subprocess

import pytest
import yaml

from stt_jax.config import DeviceConfig, WatchConfig, flagfile
from stt_jax.training.run import FLAG_GROUPS

LAUNCH = pathlib.Path(__file__).parents[1] / "configs" / "launch"
GROUPS = {**FLAG_GROUPS, "devices": DeviceConfig, "watching": WatchConfig}


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_the_training_command_parses(path):
    text = path.read_text().replace("\\\n", " ")
    if path.suffix == ".yaml":
        job = next(part for part in yaml.safe_load_all(text) if part["kind"] == "Job")
        text = job["spec"]["template"]["spec"]["containers"][0]["command"][-1]
        assert f"--num_processes={job['spec']['completions']} " in text
    line = next(line for line in text.splitlines() if "python -m stt_jax.train" in line)
    flags = re.findall(r"--(\w+)=(\S+)", line.split("stt_jax.train")[1])
    assert flags
    # What the shell fills in, by what it might be.
    values = {"flagfile": "configs/nyc.flags", "process_id": "1", "num_processes": "2"}
    arguments = [f"--{name}={values.get(name, value.strip(chr(34)))}" for name, value in flags]
    configs = flagfile.parse(GROUPS, ["train", *arguments])
    assert configs["devices"].mesh_data == -1
    assert configs["devices"].coordinator


@pytest.mark.parametrize("name", ["slurm.sbatch", "ssh.sh"])
def test_the_shell_can_read_it(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def test_ssh_starts_a_process_a_machine(tmp_path):
    """A stand-in for ssh writes down what it was asked."""
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/bash\necho "$2 $3" >> "$(dirname "$0")/asked"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    arguments = [LAUNCH / "ssh.sh", "configs/nyc.flags", "a", "b", "c"]
    subprocess.run(arguments, env=environment, check=True)
    asked = sorted((tmp_path / "asked").read_text().splitlines())
    assert [line.split()[0] for line in asked] == ["a", "b", "c"]
    for number, line in enumerate(asked):
        assert "--coordinator=a:12345" in line
        assert f"--num_processes=3 --process_id={number}" in line
    nobody = subprocess.run(arguments[:2], env=environment, capture_output=True, text=True)
    assert nobody.returncode == 2
    assert "name the machines" in nobody.stderr
