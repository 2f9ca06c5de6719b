"""How fast a training is, and where its time goes."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stt_jax.config import TrainingConfig
from stt_jax.data.pipeline import PersonBatches, TrainingBatches
from stt_jax.model.cost import step_flops
from stt_jax.model.precision import exact_products
from stt_jax.model.stt import SpatiotemporalTransformer

_PEAK_SIDE, _DEVICE_PEAK_SIDE = 1024, 8192  # of the matrices whose product measures the peak


class Meter:
    """Counts what the steps since the last report did, and the seconds that it took."""

    def __init__(
        self,
        model: SpatiotemporalTransformer,
        config: TrainingConfig,
        mesh: Mesh,
        batches: TrainingBatches | PersonBatches,
    ) -> None:
        rows, row_tokens = batches.shape
        self._tokens = rows * row_tokens * batches.fill
        self._flops = training_flops(model, config)
        self._peak = functools.cache(lambda: mesh.size * peak_flops(model.config.dtype))
        self.restart()

    def restart(self) -> None:
        """Begins anew, after something that is not training."""
        self._requests: list[jax.Array] = []
        self._waited_s = 0.0
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around everything that fetches data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def add(self, measures: dict[str, jax.Array]) -> None:
        """One step was started."""
        self._requests.append(measures["requests"])

    def report(self) -> dict[str, float]:
        """Waits for the steps so far; their speed, and begins anew.

        Returns:
          events_per_s: events that were learned from; tokens_per_s: tokens, without padding;
          data_fraction: of the time spent on waiting for a batch; step_ms: of one step, all in
          all; flops_utilisation: the model's own operations over those of a large matrix product
          on the same devices in the same time; memory_gb: peak of the device, or of the process
          where the device does not say.
        """
        events = sum(float(requests) for requests in self._requests)
        steps, seconds = len(self._requests), time.perf_counter() - self._start
        peak = self._peak()  # is measured when it is first asked for, which takes a while
        found = {
            "events_per_s": events / seconds,
            "tokens_per_s": steps * self._tokens / seconds,
            "data_fraction": self._waited_s / seconds,
            "step_ms": 1e3 * seconds / max(1, steps),
            "flops_utilisation": steps * self._flops / seconds / peak,
            "memory_gb": peak_memory_bytes() / 1e9,
        }
        self.restart()
        return found


class Trace:
    """Writes a profile of some steps."""

    def __init__(self, steps: range, folder: pathlib.Path) -> None:
        self._steps, self._folder = steps, folder
        self._running = False

    def at(self, step: int) -> None:
        """To be told of every step before it starts."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif step not in self._steps:
            self.close()

    def close(self) -> None:
        """Ends a running trace."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def training_flops(model: SpatiotemporalTransformer, config: TrainingConfig) -> int:
    """Operations of one training step by formula, see `model.cost.step_flops`."""
    return step_flops(
        model.config,
        model.sizes,
        rows=config.batch_rows,
        tokens=config.window,
        requests=config.requests,
        scored_items=config.num_negatives if config.loss == "sampled" else None,
    )


def peak_flops(dtype: str) -> float:
    """Operations a second of one device in a large square matrix product: what can be had here."""
    side = _PEAK_SIDE if jax.default_backend() == "cpu" else _DEVICE_PEAK_SIDE
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)  # ones cost less power
    product = jax.jit(exact_products(jnp.matmul)).lower(matrix, matrix).compile()
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def peak_memory_bytes() -> int:
    """The most memory in use so far: of the first device, or of this process on CPU."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
