"""Exact attention with fused time-gap and geo-distance encodings, on every platform of JAX."""

import importlib.metadata

from stt_kernels.attention.api import (
    attention_weights,
    available_implementations,
    pointer_log_mass,
    spatiotemporal_attention,
)
from stt_kernels.buckets import encode_coords, space_bucket, time_bucket
from stt_kernels.place_offsets import place_offsets

__all__ = [
    "attention_weights",
    "available_implementations",
    "encode_coords",
    "place_offsets",
    "pointer_log_mass",
    "space_bucket",
    "spatiotemporal_attention",
    "time_bucket",
]

try:
    __version__ = importlib.metadata.version("stt_jax")  # the distribution that ships it
except importlib.metadata.PackageNotFoundError:
    __version__ = "0+unknown"  # run from its sources, not installed
