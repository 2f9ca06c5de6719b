"""A small run on disk that no training made, and a service over it."""

import contextlib
import dataclasses
import functools
import pathlib
import threading

import httpx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, ServeConfig, TrainingConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.data.store import open_log, write_log
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.service.api import create_app
from stt_jax.service.service import Service
from stt_jax.training import checkpoint
from stt_jax.training import run as runs
from stt_jax.training.sharding import make_placement
from stt_jax.training.step import TrainState
from tests.stt_jax.tiny_logs import random_log

MODEL = ModelConfig(
    width=8, num_heads=1, num_layers=1, attention="reference", use_sequel=False, habit_share=0.1
)

SEED = 5  # of the log of `write_run`


def write_run(
    folder: pathlib.Path,
    model: ModelConfig = MODEL,
    *,
    seen: str = "keep",
    has_numbers: bool = False,
    dp_epsilon: float = 0.0,
    **changes,
) -> pathlib.Path:
    """A prepared log, with changes, and a run with random parameters at step 1."""
    log = random_log(num_users=6, seed=SEED, has_numbers=has_numbers)
    log = dataclasses.replace(log, directory=folder / "prepared", **changes)
    write_log(log, "")
    training = TrainingConfig(
        data=str(folder / "prepared"),
        run=str(folder / "run"),
        window=12,
        requests=8,
        asked_window=16,
        dp_epsilon=dp_epsilon,
    )
    log = open_log(folder / "prepared")
    directory = folder / "run"
    runs.write_run_files(directory, runs.run_info(log), training, model, ProtocolConfig(seen=seen))
    add_checkpoint(directory, step=1, mrr=0.1)
    return directory


@functools.cache
def _params(seed: int, config: ModelConfig, has_domains: bool, has_numbers: bool):
    log = random_log(num_users=6, seed=SEED, has_domains=has_domains, has_numbers=has_numbers)
    model = SpatiotemporalTransformer(config, runs.model_sizes(log))
    batch = TrainingBatches(log, window=16, requests=8, batch_rows=1, seed=0)[0]
    init = jax.jit(model.init, static_argnames="deterministic")
    params = init(jax.random.key(0), model_catalogue(log, config), *batch, deterministic=True)[
        "params"
    ]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (leaf + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32),
        jax.device_get(params),
    )


def add_checkpoint(directory: pathlib.Path, *, step: int, mrr: float, broken: bool = False) -> None:
    """Parameters drawn by the step; `broken`: none of them is a number."""
    info, configs = runs.read_run_files(directory)
    sizes = info.sizes
    drawn = _params(step, configs["model"], sizes.num_domains > 0, bool(sizes.numbers))
    params = jax.tree.map(jnp.asarray, drawn)
    if broken:
        params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    mesh = make_placement(DeviceConfig()).mesh  # as a training leaves them
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(jnp.asarray(step, jnp.int32), params, {"nothing": zero}, zero, zero)
    with checkpoint.open_manager(directory, configs["training"].keep) as manager:
        owner = runs.identity(directory, info)
        checkpoint.save(manager, owner, state, {}, checkpoint.Progress(), mrr)
        checkpoint.wait(manager)


def config(directory: pathlib.Path, **options) -> ServeConfig:
    """Small sizes: every size is compiled."""
    small = {"state_megabytes": 1, "max_batch": 4, "swap_seconds": 3600.0}
    return ServeConfig(run=str(directory), **(small | options))


class Client:
    """Calls the application in this process, without sockets."""

    def __init__(self, service: Service, token: str = ""):
        self.service = service
        self.app = create_app(service, token=token, managed=False)
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method: str, path: str, **options) -> httpx.Response:
        import asyncio

        async def send():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=self._headers
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def events(self, *events: dict) -> dict:
        """Posts events that have to be taken."""
        answer = self("POST", "/events", json={"events": list(events)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def recommend(self, **body) -> dict:
        """A list that has to come."""
        answer = self("POST", "/recommend", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextlib.contextmanager
def serving(directory: pathlib.Path, *, token: str = "", **options):
    """A client of a loaded service."""
    service = Service(config(directory, **options))
    try:
        service.load()
        yield Client(service, token)
    finally:
        service.stop()


def together(calls):
    """The results of calls made at the same time."""
    results = [None] * len(calls)

    def run(index):
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
