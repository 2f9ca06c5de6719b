"""Whether Triton's kernels can run here: for attention, the pointer and the offsets by distance."""

import jax

INTERPRET = False  # True runs the kernels in Pallas's interpreter, on any platform: for tests

_LEAST_CAPABILITY = 8.0


def unsupported_device() -> str | None:
    """Gives why Triton's kernels can't run on the device at hand, or None."""
    if INTERPRET:
        return None
    if jax.default_backend() != "gpu":
        return f"it needs a GPU; this is {jax.default_backend()}."
    capability = getattr(jax.devices()[0], "compute_capability", "none (not CUDA)")
    try:
        enough = float(capability) >= _LEAST_CAPABILITY
    except ValueError:
        enough = False
    if not enough:
        return f"it needs compute capability >= {_LEAST_CAPABILITY}; this GPU has {capability}."
    return None
