"""What every test runs under: strict dtypes and ranks, and several simulated devices."""

import importlib.metadata
import os
import tempfile

# Before jax is imported; commands that tests start inherit it. Two switches make compiling, which
# takes most of the time, two fifths cheaper; only jax 0.10 knows the second, others stop at it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jax").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of a test's time is compiling, and many compile the same step: compile it once a session.
# Test processes that run side by side inherit the folder from the one that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="stt_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def quick_compiling(request):
    """Tests run what they compile a few times: time goes into optimisations, but for kernels."""
    quick = "stt_kernels" not in request.path.parts
    jax.config.update("jax_disable_most_optimizations", quick)
    with pytest.MonkeyPatch.context() as patch:
        if quick:  # for commands that tests start
            patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield


# The files that take longest, so that none of them is begun when all others are done. Most start
# processes and wait for them, which is why there are more test processes than cores.
_BEGUN_FIRST = ("test_processes", "test_engine", "test_sharding", "test_attention", "test_privacy",
                "test_loop", "test_readme", "test_stt", "test_step", "test_service", "test_quick",
                "test_pointer", "test_lowering", "test_commands_end_to_end")  # fmt: skip


def pytest_addoption(parser):
    """How deep the slow searches for faults go."""
    parser.addoption(
        "--broken-files",
        type=int,
        default=6,
        help="broken files that are each prepared alone, of 500 (test_broken_inputs)",
    )


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    order = {name: place for place, name in enumerate(_BEGUN_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
