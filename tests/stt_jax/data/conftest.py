import dataclasses

import pytest

from stt_jax.data import synthetic
from tests.stt_jax.data.small_city import SMALL


@pytest.fixture(scope="module")
def city():
    return synthetic.generate_city(SMALL)


@pytest.fixture(scope="module")
def blind_city():
    return synthetic.generate_city(dataclasses.replace(SMALL, informative=False))
