"""One step for all meshes: the same numbers, and no traffic but what the placements imply."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from stt_jax.batch import table_rows
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.mesh import DATA, MODEL
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.setup import set_up
from stt_jax.training.sharding import check_rows, connect, find_rule, make_placement
from stt_jax.training.step import make_train_step
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=20, seed=6)
MODEL_CONFIG = ModelConfig(
    width=8, num_heads=2, num_layers=1, dropout=0.1, id_dropout=0.2, use_sequel=False
)
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=8, epochs=50, loss_chunk_items=32)


def run(data, model, *, fsdp=False, num_steps=20, rank=lambda state: state.params):
    """Losses of some steps on a mesh, the compiled step's text, the state, and ranks.

    Ranks are by the parameters that `rank` gives; None = nobody asks.
    """
    devices = DeviceConfig(mesh_data=data, mesh_model=model, fsdp=fsdp)
    setup = set_up(LOG, TRAINING, MODEL_CONFIG, ProtocolConfig(), devices)
    with jax.set_mesh(setup.placement.mesh):
        state = setup.initial_state()
        step = make_train_step(
            setup.model, setup.optimizer, setup.config, setup.placement, setup.shardings
        )
        compiled = step.lower(state, setup.items, *setup.put(setup.batches[0])).compile()
        losses = []
        for number in range(num_steps):
            state, measures = compiled(state, setup.items, *setup.put(setup.batches[number]))
            losses.append(float(measures["loss"]))
        if rank is None:
            return losses, compiled.as_text(), state, None
        params = jax.device_get(rank(state))
        ranks = model_ranks(
            make_ranker(setup.model),
            setup.placement.put_whole(params, setup.placement.params(params)),
            setup.items,
            LOG,
            setup.targets,
            window=TRAINING.window,
            placement=setup.placement,
        )
    return losses, compiled.as_text(), state, ranks


@pytest.fixture(scope="module")
def one_device():
    return run(1, 1)


def moved(text, kind):
    """The shapes that the collectives of one kind give, as tuples."""
    results = re.findall(rf"= (.*) {kind}(?:-start)?\(", text)
    return [
        tuple(int(n) for n in dims.split(",") if n)
        for result in results
        for dims in re.findall(r"\w+\[([\d,]*)\]", result)
    ]


@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4)])
def test_a_mesh_changes_no_number_and_never_gathers_a_table(one_device, data, model):
    # By the same parameters: trained apart, eleven items that score alike would change places.
    losses, text, state, ranks = run(data, model, rank=lambda _: one_device[2].params)
    np.testing.assert_allclose(losses, one_device[0], atol=1e-4)
    for mode, of_mode in ranks.items():
        # Scores that differ in the last bit can change places.
        assert np.mean(of_mode == one_device[3][mode]) > 0.95
    rows = table_rows(LOG.num_items)
    table = state.params["items"]["ids"]
    assert table.sharding.spec == P(MODEL)
    assert table.addressable_shards[0].data.shape == (rows // model, 8)
    assert moved(text, "all-reduce"), "gradients have to meet"
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert [shape for shape in moved(text, kind) if np.prod(shape) >= rows] == []


def test_fsdp_fetches_parameters_and_nothing_else(one_device):
    losses, text, state, _ = run(8, 1, fsdp=True, num_steps=3, rank=None)
    np.testing.assert_allclose(losses, one_device[0][:3], atol=1e-4)
    kernel = state.params["blocks_0"]["wide"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    assert moved(text, "all-gather")
    # Up to the order of their axes, in which the compiler is free.
    fetched = {tuple(sorted(shape)) for shape in moved(text, "all-gather")}
    assert fetched <= {tuple(sorted(shape)) for shape in shapes}
    assert moved(text, "all-to-all") == moved(text, "collective-permute") == []


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("items/ids", P(MODEL)),
        ("generate/bias", P(MODEL)),
        ("decoder/people", P(MODEL)),
        ("decoder/block/query/kernel", P()),
        ("blocks_11/encodings/time_table", P()),
    ],
)
def test_rules_say_where_a_parameter_lives(name, spec):
    assert find_rule(name) == spec


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="parameter items/idsx matches no rule"):
        find_rule("items/idsx")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mesh_data": 9}, "needs 9 devices and there are 8"),
        ({"mesh_data": -1, "mesh_model": 16}, "needs 16 devices and there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_placement(DeviceConfig(**config))


def test_devices_that_tables_cannot_be_split_over_are_refused(monkeypatch):
    devices = jax.devices()[:3]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    for given, number in ((-1, 3), (3, 3), (6, 6), (256, 256)):
        message = f"--mesh_model={given} makes {number} devices .* power of two up to 128$"
        with pytest.raises(ValueError, match=message):
            make_placement(DeviceConfig(mesh_model=given))
    with pytest.raises(ValueError, match="needs 9 devices and there are 3"):
        make_placement(DeviceConfig(mesh_data=9, mesh_model=-1))


def test_minus_one_takes_the_rest():
    assert dict(make_placement(DeviceConfig(mesh_data=-1)).mesh.shape) == {DATA: 8, MODEL: 1}
    placement = make_placement(DeviceConfig(mesh_data=2, mesh_model=-1))
    assert dict(placement.mesh.shape) == {DATA: 2, MODEL: 4}
    assert placement.local_rows(6) == range(6)


def test_rows_that_cannot_be_shared_out_name_two_numbers_that_can():
    placement = make_placement(DeviceConfig(mesh_data=8))
    check_rows(96, placement, 4, "--batch_rows")
    with pytest.raises(ValueError, match=r"--batch_rows=100 does not .* use 96 or 104"):
        check_rows(100, placement, 1, "--batch_rows")
    with pytest.raises(ValueError, match=r"times --accumulate=3; use 24"):
        check_rows(10, placement, 3, "--batch_rows")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh_data": 0}, "--mesh_data=0 must be positive"),
        ({"mesh_data": -1, "mesh_model": -1}, "only one of"),
        ({"cpu_devices": -1}, "--cpu_devices=-1 must not be negative"),
        ({"num_processes": 2}, "needs --coordinator"),
        ({"num_processes": 2, "process_id": 2, "coordinator": "a:1"}, "--process_id=2 must be in"),
    ],
)
def test_contradictions_name_their_flags(change, message):
    with pytest.raises(ValueError, match=message):
        DeviceConfig(**change)


def test_connecting_hands_over_the_flags_and_says_what_went_wrong():
    calls = []
    connect(DeviceConfig(), lambda *arguments: calls.append(arguments))
    connect(DeviceConfig(coordinator="auto"), lambda *arguments: calls.append(arguments))
    given = DeviceConfig(coordinator="host:1", num_processes=4, process_id=3)
    connect(given, lambda *arguments: calls.append(arguments))
    assert calls == [(), ("host:1", 4, 3)]

    def fail(*_):
        raise RuntimeError("no cluster here")

    with pytest.raises(ValueError, match=r"--coordinator=auto could not be joined \(no cluster"):
        connect(DeviceConfig(coordinator="auto"), fail)
