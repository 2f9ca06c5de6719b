"""The options of the city that tests draw, small enough to be checked by hand."""

from stt_jax.config import CityConfig

SMALL = CityConfig(num_users=60, num_places=80, num_days=28, seed=5)
