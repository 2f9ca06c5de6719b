"""Timing shared by every benchmark: warm up, wait for the device, alternate, summarise."""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import jax


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
    }


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
