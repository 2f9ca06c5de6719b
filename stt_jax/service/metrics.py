"""What the service counts, for Prometheus; nothing in it names a person."""

from __future__ import annotations

import prometheus_client
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "stt_requests", "HTTP requests.", ["route", "status"], registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "stt_request_seconds",
            "Time to the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_sizes = prometheus_client.Histogram(
            "stt_batch_size",
            "Requests answered in one call, events written in one commit.",
            ["work"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.events = prometheus_client.Counter(
            "stt_events", "Events by what became of them.", ["outcome"], registry=self.registry
        )
        self.swaps = prometheus_client.Counter(
            "stt_model_swaps", "Newer models by what became of them.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip

    def add(self, collector: Collector) -> None:
        """Adds what is read when it is asked for."""
        self.registry.register(collector)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)
