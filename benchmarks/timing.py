"""Timing shared by every benchmark: warm up, wait for the device, alternate, summarise."""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
    """The times of one candidate, in milliseconds, in the order of the rounds."""

    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median."""
        return statistics.median(self.times_ms)

    @property
    def spread_ms(self) -> float:
        """Distance between the quartiles."""
        if len(self.times_ms) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times_ms, n=4)
        return high - low

    def ratio_to(self, other: "Times") -> float:
        """Median of the ratios round by round: load that both met at once cancels."""
        pairs = zip(self.times_ms, other.times_ms, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def alternate(
    candidates: Mapping[str, Callable[[], object]], num_rounds: int, num_warmups: int = 2
) -> dict[str, Times]:
    """Times candidates in turn, one run of each a round, so that a busy machine slows all alike.

    Args:
      candidates: by name, a function that runs once and returns its arrays, which are waited for;
        or a float, which is taken as its own measurement in milliseconds.
      num_rounds: rounds that count.
      num_warmups: rounds before them that do not.

    Returns:
      The times by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(num_warmups + num_rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            out = run()
            if not isinstance(out, float):
                jax.block_until_ready(out)
                out = (time.perf_counter() - start) * 1e3
            if round_index >= num_warmups:
                times[name].append(out)
    return {name: Times(tuple(values)) for name, values in times.items()}


@contextlib.contextmanager
def real_time_priority(process_ids: tuple[int, ...], *, wanted: bool = True) -> Iterator[None]:
    """Lets this process and others go before everything else on the machine (Linux, root).

    For a machine that others use too: they wait. Threads started meanwhile inherit it.

    Args:
      process_ids: further processes that take turns with this one.
      wanted: False leaves all as it is.
    """
    threads = _threads(os.getpid(), *process_ids) if wanted else []

    def schedule(policy: int, priority: int) -> None:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.sched_setscheduler(thread, policy, os.sched_param(priority))

    if threads:
        schedule(os.SCHED_RR, 1)
    try:
        yield
    finally:
        if threads:
            schedule(os.SCHED_OTHER, 0)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps all threads of this process on one core (Linux; elsewhere on as many as they like)."""
    threads = _threads(os.getpid())
    cores = os.sched_getaffinity(0) if threads else set()

    def keep_on(chosen: set[int]) -> None:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, chosen)

    keep_on({min(cores)} if cores else set())
    try:
        yield
    finally:
        keep_on(cores)


def _threads(*process_ids: int) -> list[int]:
    return [
        int(task.name)
        for process_id in process_ids
        for task in pathlib.Path(f"/proc/{process_id}/task").glob("*")
    ]


def compile_timed(function: Callable, *args) -> tuple[Callable, float, int | None]:
    """Compiles; gives the executable, the seconds it took, and its temporary bytes if known."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_s = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    temp_bytes = None if analysis is None else int(analysis.temp_size_in_bytes)
    return compiled, compile_s, temp_bytes


def environment() -> dict[str, object]:
    """Gives what every result row says about where it was made."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": _num_cores(),
        "load": round(os.getloadavg()[0], 1),  # of everything on the machine, in threads
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """What half, 95 and 99 of a hundred calls stay below."""
    values = np.percentile(times_ms, [50, 95, 99])
    return dict(zip(("p50", "p95", "p99"), values.tolist(), strict=True))


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _commit() -> str | None:
    """Gives the commit of this code, with a + if a module was changed since; None without git."""

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", *arguments],
            cwd=pathlib.Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "*.py", "*.flags")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
