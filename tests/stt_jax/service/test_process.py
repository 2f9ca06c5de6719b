"""The service as a process of its own: started, killed under load, started again."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx

from tests.stt_jax.service.served import write_run


@contextlib.contextmanager
def started(run, *flags):
    """A running service and a client of it; killed at the end if it still runs."""
    command = [sys.executable, "-m", "stt_jax.serve", f"--run={run}", "--port=0", *flags]
    small = ["--state_megabytes=1", "--max_batch=4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        open(run.parent / "serve.log", "a") as log,
        subprocess.Popen(
            [*command, *small], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        address = process.stdout.readline().split()[1]
        try:
            with httpx.Client(base_url=address, timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def wait_until_ready(client):
    for _ in range(2000):
        if client.get("/readyz").is_success:
            return
        time.sleep(0.05)
    raise AssertionError("the service did not get ready")


def send_events(address, sender, acknowledged):
    """Sends events until the service is gone; notes those that were acknowledged."""
    with httpx.Client(base_url=address, timeout=60) as client, contextlib.suppress(httpx.HTTPError):
        for number in range(1_000_000):
            event_id = f"{sender}-{time.time_ns()}-{number}"
            user = f"user{number % 7}"
            body = {"user": user, "item": f"i{1 + number % 11}", "event_id": event_id}
            if client.post("/events", json=body).is_success:
                acknowledged.add((user, event_id))


def test_acknowledged_events_survive_a_kill_under_load_and_are_there_once(tmp_path):
    run, acknowledged = write_run(tmp_path), set()
    with started(run) as (process, client):
        assert client.get("/healthz").is_success
        senders = [
            threading.Thread(target=send_events, args=(client.base_url, sender, acknowledged))
            for sender in range(4)
        ]
        for sender in senders:
            sender.start()
        while len(acknowledged) < 80:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for sender in senders:
            sender.join()
    with started(run) as (process, client):
        wait_until_ready(client)
        stored = []
        for user in (f"user{i}" for i in range(7)):
            known = client.get(f"/users/{user}").json()
            stored += [(user, event["event_id"]) for event in known["events"]]
            asked = client.post("/recommend", json={"user": user}).json()
            assert asked["num_events"] == known["num_events"]
        assert len(stored) == len(set(stored))
        assert acknowledged <= set(stored)
        assert len(acknowledged) >= 80
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert "user3" not in (tmp_path / "serve.log").read_text()


def test_a_service_whose_model_cannot_be_loaded_says_why_and_ends(tmp_path):
    run = write_run(tmp_path)
    for checkpoint in (run / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    with started(run) as (process, _):
        assert process.wait(timeout=120) == 2
    said = (tmp_path / "serve.log").read_text()
    assert "error: " in said
    assert "checkpoint" in said
