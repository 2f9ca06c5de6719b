"""Do the device kernels compile, and do they fit, on machines that are not here?

TPU: a full Mosaic and XLA compile by libtpu for a topology that is only described; the vector
memory that each kernel takes is read from the compiled program. GPU: a full Triton and XLA compile
by the CUDA plugin's compiler for a described H100; registers and spills are what `ptxas` says of
the dumped PTX, shared memory is that of the launch. Neither needs a device or a driver. What is
said here is *compiled*, never *timed*.

    pip install jax==0.10.2 libtpu==0.0.42.* jax-cuda12-pjrt==0.10.2 jax-cuda12-plugin==0.10.2
    pip install nvidia-cuda-nvcc-cu12  # ptxas
    python -m benchmarks.compile_offline --output=benchmarks/results/compile_offline.json
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import timing
from stt_kernels.attention import checks, mosaic_tpu, triton

# B, L, H, D
SHAPES = [(4, 4096, 4, 64), (16, 1024, 8, 32)]
ENTRIES = {"time": 64, "space": 64, "cycle": 168}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def step_of(backend, table_names):
    """Gives forward and backward of a call, and what gives the shapes of its inputs."""

    def step(arrays, tables, sides, out_gradient):
        def attend(arrays, tables):
            q, k, v = arrays
            q, k, *rest = checks.check_call(q, k, **tables, **sides)
            return backend.attend(q, k, v, *rest)

        out, pull = jax.vjp(attend, arrays, tables)
        return out, pull(out_gradient)

    def inputs(shape, dtype, sharding):
        batch, length, heads, _ = shape

        def array(*shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        q = array(*shape, dtype=dtype)
        tables = {
            f"{name}_table": array(heads, ENTRIES[name], dtype=jnp.float32) for name in table_names
        }
        sides = {"segment_ids": array(batch, length, dtype=jnp.int32)}
        if "time" in table_names:
            sides["times"] = array(batch, length, dtype=jnp.int32)
        if "space" in table_names:
            sides["coords"] = array(batch, length, 3, dtype=jnp.float32)
        if "cycle" in table_names:
            sides["phases"] = array(batch, length, dtype=jnp.int32)
        return (q, q, q), tables, sides, q

    return step, inputs


def targets(names):
    """Gives (name, backend, device) of each target that this machine can compile for."""
    for name in names:
        try:
            if name == "h100":
                topology = topologies.get_topology_desc(
                    platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
                )
                yield name, triton, topology.devices[0]
            else:
                topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
                yield name, mosaic_tpu, topology.devices[0]
        except Exception as error:  # any missing plugin: say so and go on with the others
            print(f"{name}: can't compile here: {' '.join(str(error).split())[:300]}")


def main(argv=None):
    """Compiles every shape for every target, prints and writes one row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="where to write one JSON row a compile")
    parser.add_argument("--targets", default="v5e:2x2,v6e:2x2,h100")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
    rows = []
    for name, backend, device in targets(options.targets.split(",")):
        mesh = jax.sharding.Mesh([device], ("x",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        for shape in SHAPES:
            for dtype in ("float32", "bfloat16"):
                for table_names in ((), ("time", "space", "cycle")):
                    step, inputs = step_of(backend, table_names)
                    row = {
                        "target": name,
                        "device": device.device_kind,
                        "backend": backend.__name__.rsplit(".", 1)[-1],
                        "shape": shape,
                        "dtype": dtype,
                        "tables": table_names,
                    }
                    arrays = inputs(shape, jnp.dtype(dtype), sharding)
                    rows.append(row | compile_once(step, arrays, backend))
                    print(rows[-1], flush=True)
                    if options.output:
                        timing.write_rows(options.output, rows)
    return int(not rows or any("error" in row for row in rows))


def compile_once(step, inputs, backend):
    """Gives the seconds, the temporary bytes and what each kernel takes, or the error."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options: Any = {"xla_dump_to": folder} if backend is triton else None
        try:
            compiled = jax.jit(step).lower(*inputs).compile(compiler_options=options)
        except Exception as error:  # the error is the result
            return {"error": " ".join(str(error).split())[:500], "jax": jax.__version__}
        compile_s = round(time.perf_counter() - start, 2)
        kernels = gpu_kernels(pathlib.Path(folder)) if options else tpu_kernels(compiled.as_text())
    analysis = compiled.memory_analysis()
    return {
        "compile_s": compile_s,
        "temp_bytes": None if analysis is None else int(analysis.temp_size_in_bytes),
        "kernels": kernels,
        "jax": jax.__version__,
    }


def tpu_kernels(program):
    """Gives the bytes of vector memory of each kernel of a compiled program, by its name."""
    found = {}
    for line in program.splitlines():
        name = re.search(r"(\w+_kernel)\)*/pallas_call", line)
        used = re.search(
            r'"used_scoped_memory_configs":\[\{"memory_space":"1"[^}]*"size":"(\d+)"', line
        )
        if name and used and "tpu_custom_call" in line:
            found[name.group(1)] = {"vmem_bytes": int(used.group(1))}
    return found


def gpu_kernels(folder):
    """Gives registers a thread, bytes spilled and shared bytes of each kernel of a dump."""
    launches = "".join(path.read_text() for path in folder.glob("*.thunk_sequence.txt"))
    ptxas = find_ptxas()
    found = {}
    for path in sorted(folder.glob("*.ptx")):
        entry = re.search(r"\.entry (\w+_kernel)\(", path.read_text())
        if not entry:
            continue
        name = entry.group(1)
        shared = re.search(rf"\b{name}\b.*shared_memory: (\d+) bytes", launches)
        found[name] = {"shared_bytes": int(shared.group(1)) if shared else None}
        if ptxas:
            found[name] |= read_ptxas(ptxas, path)
    return found


def find_ptxas():
    """Gives the path of `ptxas`, on the PATH or of the package nvidia-cuda-nvcc-cu12, or None."""
    packaged = pathlib.Path(sysconfig.get_path("platlib"), "nvidia", "cuda_nvcc", "bin", "ptxas")
    return shutil.which("ptxas") or (str(packaged) if packaged.exists() else None)


def read_ptxas(ptxas, path):
    """Gives what the assembler says of one kernel."""
    architecture = _first(r"\.target (\w+)", path.read_text())
    command = [ptxas, "--verbose", f"-arch={architecture}", str(path), f"-o={os.devnull}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return {
        "registers": int(_first(r"Used (\d+) registers", said)),
        "spill_store_bytes": int(_first(r"(\d+) bytes spill stores", said)),
        "spill_load_bytes": int(_first(r"(\d+) bytes spill loads", said)),
    }


def _first(pattern, text):
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern!r} in: {text[:500]}")
    return found.group(1)


if __name__ == "__main__":
    sys.exit(main())
