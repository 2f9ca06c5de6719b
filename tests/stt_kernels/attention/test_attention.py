"""One behaviour suite for every backend: values and gradients against the float64 reference."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import stt_kernels
from stt_kernels.attention import triton_plan, xla
from tests.stt_kernels.attention import cases
from tests.stt_kernels.attention.cases import Case

LENGTHS = [1, 31, 64, 65, 257, 1000]


@pytest.fixture(params=["xla", "xla blocked", "triton", "mosaic_tpu"])
def backend(request, monkeypatch):
    """A backend, or one form of it, as `implementation`."""
    # What is run once or twice is compiled quickly; the longest is compiled as it is in use.
    quick = not cases.is_native(request.param)
    jax.config.update("jax_disable_most_optimizations", quick)
    if request.param in ("triton", "mosaic_tpu"):
        return cases.interpret(monkeypatch, request.param)
    if request.param == "xla blocked":
        sizes = xla.TileSizes(num_rows=1, block_queries=32, block_keys=48)
        monkeypatch.setattr(xla, "choose_tile_sizes", lambda *shape: sizes)
    return request.param


def run(case, backend, dtype="float32"):
    return cases.differentiate(*cases.build(case, dtype), backend)


def compare(case, backend, dtype="float32"):
    cases.check(run(case, backend, dtype), cases.answer(case, dtype), dtype)


@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_match_the_reference(backend, length):
    if length == max(LENGTHS) and backend.startswith("xla"):
        jax.config.update("jax_disable_most_optimizations", False)
    compare(Case(length, packed=length > 1), backend)


@pytest.mark.parametrize("length", [65, 257])
def test_silu_matches_the_reference(backend, length):
    compare(Case(length, packed=length > 1, normalizer="silu"), backend)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "normalizer"),
    [(1, 257, "softmax"), (16, 65, "softmax"), (16, 65, "silu"), (130, 70, "softmax")],
)
def test_queries_may_be_others_than_the_keys(backend, num_queries, num_keys, normalizer):
    compare(Case(num_queries, num_keys, packed=True, normalizer=normalizer), backend)


def test_attention_without_order_sees_every_key(backend):
    compare(Case(65, tables=("time",), causal=False), backend)


@pytest.mark.parametrize("tables", [(), ("space", "cycle")])
def test_what_is_left_out_takes_no_part(backend, tables):
    compare(Case(31, tables=tables, batch=1), backend)


def test_a_constant_may_divide_silu(backend):
    case = Case(31, normalizer="silu", silu_denominator=50.0, tables=("time",))
    compare(case, backend)


def test_bfloat16_stays_close_to_the_reference(backend):
    case = Case(65, packed=True)
    compare(case, backend, "bfloat16")
    assert run(case, backend, "bfloat16")["out"].dtype == jnp.bfloat16


@pytest.mark.parametrize("normalizer", ["softmax", "silu"])
def test_a_query_with_no_key_gives_zero_with_no_gradient(backend, normalizer):
    case = Case(16, 65, normalizer=normalizer, packed=True)
    arrays, tables, options, out_gradient = cases.build(case)
    found = cases.differentiate(arrays, tables, options, out_gradient, backend)
    lost = (options["query_positions"] < 0) | (options["query_segment_ids"] == 0)
    np.testing.assert_array_equal(np.asarray(found["out"])[lost], 0.0)
    np.testing.assert_array_equal(np.asarray(found["q"])[lost], 0.0)


def test_rows_of_nothing_but_padding_give_zero(backend):
    arrays, tables, options, out_gradient = cases.build(Case(65, packed=True))
    options["segment_ids"] = np.zeros_like(options["segment_ids"])
    found = cases.differentiate(arrays, tables, options, out_gradient, backend)
    for name, value in found.items():
        np.testing.assert_array_equal(np.asarray(value), 0.0, err_msg=name)


def test_padding_never_reaches_a_valid_row(backend):
    arrays, tables, options, out_gradient = cases.build(Case(65, packed=True))
    clean = cases.differentiate(arrays, tables, options, out_gradient, backend)
    padding = options["segment_ids"] == 0
    for array in (*arrays, out_gradient):
        array[padding] = np.nan
    options["coords"][padding] = np.inf
    options["times"][padding] = -(2**31)
    options["phases"][padding] = 2**31 - 1
    dirty = cases.differentiate(arrays, tables, options, out_gradient, backend)
    cases.check_same(dirty, clean, backend)


def test_future_events_have_no_gradient(backend):
    arrays, tables, options, out_gradient = cases.build(Case(65, packed=True))
    out_gradient[:, 20:] = 0.0
    found = cases.differentiate(arrays, tables, options, out_gradient, backend)
    np.testing.assert_array_equal(np.asarray(found["k"])[:, 20:], 0.0)
    np.testing.assert_array_equal(np.asarray(found["v"])[:, 20:], 0.0)


def test_packed_rows_equal_rows_of_their_own(backend):
    tables = ("time", "space", "cycle")
    first, second = (cases.build(Case(31, batch=1, seed=seed, tables=tables)) for seed in (1, 2))
    tables = first[1]

    def join(a, b):
        return np.concatenate([a, b], axis=1)

    arrays = tuple(map(join, first[0], second[0]))
    options = {
        name: join(first[2][name], second[2][name]) for name in ("times", "coords", "phases")
    }
    options["segment_ids"] = np.repeat([[1, 2]], 31, axis=1).astype(np.int32)
    out_gradient = join(first[3], second[3])
    packed = cases.differentiate(arrays, tables, options, out_gradient, backend)
    apart = [
        cases.differentiate(row[0], tables, row[2], row[3], backend) for row in (first, second)
    ]
    for name in ("out", "q", "k", "v"):
        alone = np.concatenate([found[name] for found in apart], axis=1)
        np.testing.assert_allclose(packed[name], alone, rtol=1e-5, atol=1e-5, err_msg=name)
    for name in tables:
        alone = apart[0][name] + apart[1][name]
        np.testing.assert_allclose(packed[name], alone, rtol=1e-4, atol=1e-4, err_msg=name)


def test_positions_by_sequence_mean_the_same_as_the_order_of_the_row(backend):
    arrays, tables, options, out_gradient = cases.build(Case(65, packed=True))
    by_row = cases.differentiate(arrays, tables, options, out_gradient, backend)
    ids = options["segment_ids"]
    valid = ids != 0
    starts = np.stack([[np.flatnonzero(row == value)[0] for value in row] for row in ids])
    positions = np.where(valid, np.arange(ids.shape[1])[None] - starts, 0).astype(np.int32)
    options["positions"] = positions
    by_sequence = cases.differentiate(arrays, tables, options, out_gradient, backend)
    for name, value in by_row.items():
        close = 1e-5 * max(float(jnp.abs(value).max()), 1e-3)
        np.testing.assert_allclose(by_sequence[name], value, rtol=0, atol=close, err_msg=name)


def test_huge_gaps_and_equal_times_are_fine(backend):
    arrays, tables, options, out_gradient = cases.build(Case(65, tables=("time",)))
    times = np.zeros_like(options["times"])
    times[:, 33:] = 2**31 - 1
    options["times"] = times
    found = cases.differentiate(arrays, tables, options, out_gradient, backend)
    expected = cases.differentiate(arrays, tables, options, out_gradient, "reference")
    cases.check(found, {name: np.asarray(value) for name, value in expected.items()})
    used = np.flatnonzero(np.asarray(found["time_table"]).any(axis=0))
    assert used.tolist() == [0, 62]


def test_logits_of_hundreds_neither_overflow_nor_lose_gradients(backend):
    case = Case(65, packed=True)
    arrays, tables, options, out_gradient = cases.build(case)
    tables = {name: 300.0 * table for name, table in tables.items()}
    found = cases.differentiate(arrays, tables, options, out_gradient, backend)
    expected = cases.differentiate(arrays, tables, options, out_gradient, "reference")
    # A logit of 1,000 is known to 6e-5 in float32, and its exponential to as much.
    for name, value in expected.items():
        value = np.asarray(value)
        close = 2e-3 * np.abs(value).max()
        np.testing.assert_allclose(found[name], value, rtol=0, atol=close, err_msg=name)


def test_rows_do_not_depend_on_their_neighbours(backend):
    arrays, tables, options, out_gradient = cases.build(Case(65, packed=True))
    order = np.array([1, 0])
    straight = cases.differentiate(arrays, tables, options, out_gradient, backend)

    def permute(tree):
        return jax.tree.map(lambda a: a[order] if np.ndim(a) >= 2 else a, tree)

    mixed = cases.differentiate(
        permute(arrays), tables, permute(options), permute(out_gradient), backend
    )
    for name in ("out", "q", "k", "v"):
        np.testing.assert_allclose(
            mixed[name], straight[name][order], rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_same_inputs_give_the_same_bits(backend):
    case = Case(257, packed=True)
    cases.check_same(run(case, backend), run(case, backend), backend)


def test_attention_exports():
    arrays, tables, options, _ = cases.build(Case(65, packed=True))

    def attend(arrays, tables):
        return stt_kernels.spatiotemporal_attention(
            *arrays, **tables, **options, implementation="xla"
        )

    arrays, tables = jax.tree.map(jnp.asarray, (arrays, tables))
    exported = export.export(jax.jit(attend))(arrays, tables)
    np.testing.assert_allclose(
        exported.call(arrays, tables), attend(arrays, tables), rtol=1e-5, atol=1e-5
    )


def test_unknown_phases_add_nothing(backend):
    arrays, tables, options, out_gradient = cases.build(Case(31, tables=("cycle",)))
    known = dict(options)
    options["phases"] = np.full_like(options["phases"], -1)
    found = cases.differentiate(arrays, tables, options, out_gradient, backend)
    del known["phases"]
    without = cases.differentiate(arrays, {}, known, out_gradient, backend)
    np.testing.assert_allclose(found["out"], without["out"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(found["cycle_table"]), 0.0)


def test_dense_weights_times_values_are_the_output():
    for normalizer in ("softmax", "silu"):
        case = Case(65, packed=True, normalizer=normalizer)
        (q, k, v), tables, options, _ = cases.build(case)
        weights = stt_kernels.attention_weights(q, k, **tables, **options)
        out = np.einsum("bhls,bshd->blhd", weights, v)
        np.testing.assert_allclose(out, cases.answer(case)["out"], rtol=0, atol=1e-5)


def test_dense_weights_of_softmax_sum_to_one_or_to_nothing():
    (q, k, _), tables, options, _ = cases.build(Case(16, 65, packed=True))
    sums = np.asarray(stt_kernels.attention_weights(q, k, **tables, **options)).sum(-1)
    assert ((np.abs(sums - 1) < 1e-5) | (sums == 0)).all()
    assert (sums == 0).any()


def temp_bytes(length, **changes):
    case = dataclasses.replace(Case(length, batch=1, heads=2, width=8), **changes)
    arrays, tables, options, out_gradient = cases.build(case)
    sides = {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in options.items() if name not in sides}

    def step(arrays, tables, sides, out_gradient):
        def attend(arrays, tables):
            return stt_kernels.spatiotemporal_attention(
                *arrays, **tables, **sides, **rest, implementation="xla"
            )

        out, pull = jax.vjp(attend, arrays, tables)
        return out, pull(out_gradient)

    compiled = jax.jit(step).lower(arrays, tables, sides, out_gradient).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_length_not_with_its_square():
    lengths = [512, 1024, 2048, 4096, 8192]
    sizes = [temp_bytes(length, tables=("time", "space")) for length in lengths]
    growth = [after / before for before, after in itertools.pairwise(sizes)]
    assert max(growth) <= 2.3, (sizes, growth)


def test_tables_as_large_as_they_may_be(backend, monkeypatch):
    """Every entry has its place, also where those of all tables share one number."""
    sizes = {"time": 256, "space": 256, "order": 256, "cycle": 255}
    monkeypatch.setattr(cases, "TABLE_SIZES", sizes)
    compare(Case(65, packed=True, seed=256), backend)


@pytest.mark.parametrize("length", [130, 400])
def test_what_is_kept_for_the_tables_of_a_gpu_is_cut_by_queries(monkeypatch, length):
    """Every part gives its share, the last and shorter one too."""
    backend = cases.interpret(monkeypatch, "triton")
    seen = []
    cut = triton_plan.cut_queries

    def cut_and_see(*arguments):
        plan, shared, parts = cut(*arguments)
        seen.append(parts["q"].shape)
        return plan, shared, parts

    monkeypatch.setattr(triton_plan, "cut_queries", cut_and_see)
    tiles = dataclasses.replace(triton_plan.choose_tiles(jnp.float32), scratch_numbers=0)
    monkeypatch.setattr(triton_plan, "choose_tiles", lambda dtype: tiles)
    case = Case(length, packed=True, seed=1)
    compare(case, backend)
    block = tiles.query_gradient.block_queries
    num_parts = -(-length // block)
    assert seen == [(num_parts, case.batch, case.heads, block, 16)]


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_without_an_allowed_pair_are_not_visited(monkeypatch, causal):
    """Of a packed row, those of other segments and later ones are not."""
    cases.interpret(monkeypatch, "triton")
    length, of_segment, tile = 512, 128, triton_plan.choose_tiles(jnp.float32).forward
    segment_ids = np.repeat([1, 2, 3, 0], of_segment)[None].astype(np.int32)
    visits = visited(monkeypatch, length, segment_ids, causal)
    for query_block, (first, end) in enumerate(visits):
        segment = segment_ids[0, query_block * tile.block_queries]
        if segment == 0:
            assert first == end
            continue
        assert first == of_segment * (segment - 1) // tile.block_keys
        last_key = (query_block + 1) * tile.block_queries if causal else of_segment * segment
        assert end == -(-last_key // tile.block_keys)


def visited(monkeypatch, length, segment_ids, causal):
    """Gives the range of key blocks of each block of queries, of one row."""
    seen = []
    with_ranges = triton_plan.with_ranges

    def see(*arguments):
        arrays = with_ranges(*arguments)
        seen.append(np.asarray(arrays["query_ranges"][0]).T)
        return arrays

    monkeypatch.setattr(triton_plan, "with_ranges", see)
    array = jnp.ones((1, length, 1, 16), jnp.float32)
    stt_kernels.spatiotemporal_attention(
        *(array, array, array),
        segment_ids=jnp.asarray(segment_ids),
        causal=causal,
        implementation="triton",
    )
    return seen[0]


def test_a_block_between_others_that_meet_need_not_meet(backend):
    """What was not written for a tile that nobody visited is not read either."""
    arrays, tables, options, out_gradient = cases.build(Case(96, 192, packed=True, seed=3))
    options["segment_ids"][:] = np.repeat([1, 2, 3], 64)
    options["query_segment_ids"][:] = np.repeat([1, 3, 1], 32)
    options["query_positions"][:] = 191
    inputs = arrays, tables, options, out_gradient
    expected = cases.differentiate(*inputs, "reference")
    cases.check(cases.differentiate(*inputs, backend), jax.tree.map(np.asarray, expected))
