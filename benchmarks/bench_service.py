"""Does the service answer quickly, fail nobody and lose nothing, under load and under kill -9?

    python -m benchmarks.bench_service --run=runs/x                  ten minutes, then ten kills
    python -m benchmarks.bench_service --run=runs/x --seconds=20 --kills=1

64 connections send 80 % requests and 20 % events of the people of the run's log, clients and
service on this machine together: first as fast as they are answered, so that all of them wait for
each other, then 100 calls a second in all, a call's time from when it was due. After the load the
service is killed again and again while events come in, and what was acknowledged is looked for by
id.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp

from benchmarks import timing
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.store import open_log
from stt_jax.training.run import read_run_files

RESULTS = pathlib.Path(__file__).parent / "results" / "service.json"
CONNECTIONS = 64
REQUEST_SHARE = 0.8
CALLS_PER_S = 100  # when they are paced


class Served:
    """The service as a process; its event log is in `folder`."""

    def __init__(self, run: str, folder: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "stt_jax.serve", f"--run={run}", "--port=0",
                f"--store=sqlite:///{folder}/events.db",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1].rstrip("/")

    def wait_until_ready(self) -> float:
        """Seconds until the service was ready."""
        start = time.perf_counter()
        while not self._is_ready():
            time.sleep(0.5)
        return time.perf_counter() - start

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=60):
                return True
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return False

    @property
    def resident_mb(self) -> float:
        """Memory of the process, MB."""
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096 / 1e6

    def kill(self) -> None:
        """As a power cut does, but for the disk's own cache."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with all connections. Its own work is on the clock, too: aiohttp's is small."""
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as client:
        yield client


class Load:
    """What was sent and what came of it."""

    def __init__(self, log: PreparedLog, seed: int) -> None:
        self._log, self._random = log, random.Random(seed)
        self.times_ms: dict[str, list[float]] = {"/recommend": [], "/events": []}
        self.statuses: Counter[int] = Counter()
        self.acknowledged: set[tuple[str, str]] = set()
        self._number = 0

    def _next(self) -> tuple[str, dict]:
        user = self._log.user_ids[self._random.randrange(self._log.num_users)]
        if self._random.random() < REQUEST_SHARE:
            return "/recommend", {"user": user, "time": "now", "exclude_seen": False}
        self._number += 1
        item = self._log.item_ids[1 + self._random.randrange(self._log.num_items)]
        event_id = f"{self._random.random()}-{self._number}"
        return "/events", {"user": user, "item": item, "event_id": event_id}

    async def send(
        self,
        client: aiohttp.ClientSession,
        until: float,
        *,
        only_events: bool = False,
        interval_s: float = 0.0,
    ) -> None:
        """One connection's calls, one after the other, `interval_s` apart if it can."""
        start = time.perf_counter() + self._random.random() * interval_s
        while start < until:
            path, body = self._next()
            if only_events and path != "/events":
                continue
            await asyncio.sleep(max(0.0, start - time.perf_counter()))
            async with client.post(path, json=body) as answer:
                await answer.read()
            self.times_ms[path].append((time.perf_counter() - start) * 1e3)
            self.statuses[answer.status] += 1
            if path == "/events" and answer.ok:
                self.acknowledged.add((body["user"], body["event_id"]))
            start = start + interval_s if interval_s else time.perf_counter()

    async def run(
        self, address: str, seconds: float, *, only_events: bool = False, interval_s: float = 0.0
    ) -> None:
        """All connections; a service that goes away ends it."""
        until = time.perf_counter() + seconds
        async with connected(address) as client:
            sending = [
                self.send(client, until, only_events=only_events, interval_s=interval_s)
                for _ in range(CONNECTIONS)
            ]
            await asyncio.gather(*sending, return_exceptions=only_events)


async def under_load(
    served: Served, log: PreparedLog, seconds: float, calls_per_s: int = 0
) -> dict:
    """The long run; `calls_per_s` of 0 is as many as are answered."""
    load, warm = Load(log, calls_per_s), Load(log, 1)
    await warm.run(served.address, min(5.0, seconds))
    memory = [served.resident_mb]

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds / 20)
            memory.append(served.resident_mb)

    watcher = asyncio.create_task(watch())
    start = time.perf_counter()
    interval_s = CONNECTIONS / calls_per_s if calls_per_s else 0.0
    await load.run(served.address, seconds, interval_s=interval_s)
    took_s = time.perf_counter() - start
    watcher.cancel()
    num_calls = sum(load.statuses.values())
    return {
        "question": "paced" if calls_per_s else "load",
        "connections": CONNECTIONS,
        "seconds": took_s,
        "calls": num_calls,
        "calls_per_s": num_calls / took_s,
        "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
        "recommend_ms": timing.percentiles(load.times_ms["/recommend"]),
        "events_ms": timing.percentiles(load.times_ms["/events"]),
        "resident_mb": {"start": memory[0], "half": memory[len(memory) // 2], "end": memory[-1]},
        **timing.environment(),
    }


async def kills(run: str, log: PreparedLog, folder: str, num_kills: int) -> dict:
    """Kills under load, then counts by id."""
    acknowledged: set[tuple[str, str]] = set()
    for number in range(num_kills):
        served = Served(run, folder)
        load = Load(log, 100 + number)
        sending = asyncio.create_task(load.run(served.address, 3600, only_events=True))
        while len(load.acknowledged) < 200:
            await asyncio.sleep(0.02)
        served.kill()
        await sending
        acknowledged |= load.acknowledged
    served = Served(run, folder)
    served.wait_until_ready()
    there: list[tuple[str, str]] = []
    async with connected(served.address) as client:
        for user in sorted({user for user, _ in acknowledged}):
            async with client.get(f"/users/{user}") as answer:
                known = await answer.json()
            there += [(user, event["event_id"]) for event in known["events"]]
    served.kill()
    return {
        "question": "kills",
        "kills": num_kills,
        "acknowledged": len(acknowledged),
        "missing": len(acknowledged - set(there)),
        "twice": len(there) - len(set(there)),
        **timing.environment(),
    }


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(argv)
    _, configs = read_run_files(pathlib.Path(options.run))
    log = open_log(configs["training"].data)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        served = Served(options.run, folder)
        ready_s = served.wait_until_ready()
        rows.append(asyncio.run(under_load(served, log, options.seconds)) | {"ready_s": ready_s})
        print(json.dumps(rows[-1]), flush=True)
        rows.append(asyncio.run(under_load(served, log, options.seconds / 10, CALLS_PER_S)))
        print(json.dumps(rows[-1]), flush=True)
        served.kill()
    with tempfile.TemporaryDirectory() as folder:
        rows.append(asyncio.run(kills(options.run, log, folder, options.kills)))
        print(json.dumps(rows[-1]), flush=True)
    training, model = configs["training"], configs["model"]
    served_what = {
        "log": pathlib.Path(training.data).name,
        "num_items": log.num_items,
        "num_people": log.num_users,
        "window": training.asked_tokens,
        "width": model.width,
        "num_layers": model.num_layers,
    }
    timing.write_rows(options.output, [row | served_what for row in rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
