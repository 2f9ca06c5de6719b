"""What code inside a computation sees of the devices it runs on."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from stt_jax.mesh import DATA, MODEL, is_split


@pytest.mark.parametrize(("shape", "split"), [((1, 1), False), ((2, 1), True), ((1, 4), True)])
def test_the_compiler_splits_what_no_shard_map_has_split(shape, split):
    assert not is_split()
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    seen = []

    def look(x):
        seen.append(is_split())
        return x

    with jax.set_mesh(Mesh(devices, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)):
        jax.jit(look)(np.zeros(4, np.float32))
        whole = PartitionSpec()
        mapped = jax.shard_map(look, in_specs=whole, out_specs=whole, check_vma=False)
        jax.jit(mapped)(np.zeros(4, np.float32))
    assert seen == [split, False]
