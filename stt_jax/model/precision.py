"""float32 that is float32 on every device: the same numbers on a laptop, a GPU and a TPU.

Left to itself, JAX multiplies float32 in fewer digits where the hardware has a faster way (TF32 on
GPUs, bfloat16 on TPUs). `--dtype=bfloat16` is how to ask for that here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

_Function = TypeVar("_Function", bound=Callable[..., Any])


def exact_products(function: _Function) -> _Function:
    """Makes the float32 products that a function traces keep all their digits, gradients' too."""

    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **options)

    return traced  # type: ignore[return-value]
