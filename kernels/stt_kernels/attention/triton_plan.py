"""What the Triton kernels are given: tiles, padding, the order of axes, and the call itself."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from stt_kernels.attention import flash_inputs, geometry
from stt_kernels.attention.flash_inputs import pad


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """The tile of one step of one kernel; its sides are powers of two, 16 at least."""

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int = 1  # with 2 the compiler pipelines the table look-ups through shared memory


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tile of every kernel."""

    forward: TileSizes
    query_gradient: TileSizes
    key_gradient: TileSizes
    table_gradient: TileSizes


def choose_tiles(dtype) -> Tiles:
    """Chooses by what was fastest on an H100 (benchmarks/tune_triton.py, kernels/NOTES.md)."""
    # A program of the table gradient works alone, entry after entry: small ones, and many.
    if dtype == jnp.float32:  # products of float32 take registers, not tensor cores
        size, of_tables = TileSizes(32, 64, num_warps=4), TileSizes(32, 16, num_warps=1)
    else:
        size, of_tables = TileSizes(64, 64, num_warps=4), TileSizes(16, 64, num_warps=1)
    return Tiles(size, size, size, of_tables)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a call, and of the kernel of it at hand: its tile."""

    rules: geometry.Rules
    pointer: bool  # what is asked for is the mass on matching keys; there are no values
    tiles: Tiles
    tile: TileSizes
    num_rows: int
    num_heads: int
    width: int  # a power of two, 16 at least
    num_queries: int
    num_keys: int
    table_sizes: tuple[tuple[str, int], ...]
    known_order: bool  # the causal half is known before the data
    masks_segments: bool  # there are segments, or padding up to whole blocks of keys

    @classmethod
    def of(cls, rules, tiles, q, k, tables, queries, *, pointer=False):
        """Plans a call."""
        tiles = tiles or choose_tiles(q.dtype)
        plan = cls(
            rules=rules,
            pointer=pointer,
            tiles=tiles,
            tile=tiles.forward,
            num_rows=q.shape[0],
            num_heads=q.shape[2],
            width=max(pl.next_power_of_2(q.shape[3]), 16),
            num_queries=q.shape[1],
            num_keys=k.shape[1],
            table_sizes=tuple(tables.sizes().items()),
            known_order=rules.causal and queries.positions is None,
            masks_segments=queries.segment_ids is not None,
        )
        padded = plan.padded_keys != plan.num_keys
        return dataclasses.replace(plan, masks_segments=padded or plan.masks_segments)

    def of_kernel(self, name):
        """Gives the plan of one kernel, by the name of its tile."""
        return dataclasses.replace(self, tile=getattr(self.tiles, name))

    @property
    def sizes(self):
        """Entries of each table by its name."""
        return dict(self.table_sizes)

    @property
    def padded_queries(self):
        """Whole blocks of every kernel."""
        tiles = vars(self.tiles).values()
        return _round_up(self.num_queries, max(tile.block_queries for tile in tiles))

    @property
    def padded_keys(self):
        """Whole blocks of every kernel."""
        tiles = vars(self.tiles).values()
        return _round_up(self.num_keys, max(tile.block_keys for tile in tiles))

    @property
    def query_blocks(self):
        """Blocks that hold the queries."""
        return pl.cdiv(self.num_queries, self.tile.block_queries)

    def key_blocks_end(self, query_block):
        """Gives the block of keys after the last that a block of queries meets."""
        key_blocks = pl.cdiv(self.num_keys, self.tile.block_keys)
        if not self.known_order:
            return key_blocks
        end = pl.cdiv((query_block + 1) * self.tile.block_queries, self.tile.block_keys)
        return jnp.minimum(end, key_blocks)

    def first_query_block(self, key_block):
        """Gives the first block of queries that meets a block of keys."""
        if not self.known_order:
            return 0
        return key_block * self.tile.block_keys // self.tile.block_queries


def _round_up(length, block):
    return pl.cdiv(length, block) * block


# Inputs


def arrange(plan, q, k, tables, queries, keys):
    """Puts heads before events and pads to whole blocks and to a width that Triton takes."""

    def whole_numbers(side, length, padded):
        columns = flash_inputs.whole_numbers(side, plan.num_rows, length)
        return pad(jnp.stack(columns, axis=1), padded, axis=2)

    def places(side, length, padded):
        if side.coords is None:
            return jnp.zeros((plan.num_rows, 3, padded), jnp.float32)
        return pad(jnp.swapaxes(side.coords, 1, 2), padded, axis=2)

    num_queries, num_keys = plan.num_queries, plan.num_keys
    return {
        "q": arrange_heads(plan, q, plan.padded_queries),
        "k": arrange_heads(plan, k, plan.padded_keys),
        "query_numbers": whole_numbers(queries, num_queries, plan.padded_queries),
        "key_numbers": whole_numbers(keys, num_keys, plan.padded_keys),
        "query_coords": places(queries, num_queries, plan.padded_queries),
        "key_coords": places(keys, num_keys, plan.padded_keys),
    } | {f"{name}_table": getattr(tables, name).astype(jnp.float32) for name in plan.sizes}


def arrange_heads(plan, array, length):
    """Gives [B, N, H, D] as [B, H, length, width]."""
    array = pad(jnp.swapaxes(array, 1, 2), length, axis=2)
    return pad(array, plan.width, axis=3)


def with_ids(numbers, ids):
    """Adds a row of ids [B, N] to the whole numbers of a side."""
    return jnp.concatenate([numbers, pad(ids, numbers.shape[2], axis=1)[:, None]], axis=1)


def trim(array, like):
    """Undoes `arrange_heads`."""
    return jnp.swapaxes(array[:, :, : like.shape[1], : like.shape[3]], 1, 2)


# Outputs: the block of a program and the shape of the whole, by the plan of the kernel

Out = Callable[[Plan], tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]


def per_event(side, dtype, *, heads=False) -> Out:
    """Gives an output with a number, or a head's vector, for each event of a side."""

    def out(plan):
        queries = side == "queries"
        length = plan.padded_queries if queries else plan.padded_keys
        size = plan.tile.block_queries if queries else plan.tile.block_keys
        last, zeros = ((plan.width,), (0,)) if heads else ((), ())
        spec = pl.BlockSpec((None, None, size, *last), lambda b, h, block: (b, h, block, *zeros))
        shape = (plan.num_rows, plan.num_heads, length, *last)
        return spec, jax.ShapeDtypeStruct(shape, dtype)

    return out


def per_entry(size) -> Out:
    """Gives an output with a number for each entry of a table, for each block of queries."""

    def out(plan):
        width = pl.next_power_of_2(size)
        num_blocks = plan.padded_queries // plan.tile.block_queries
        spec = pl.BlockSpec((None, None, None, width), lambda b, h, block: (b, h, block, 0))
        shape = (plan.num_rows, plan.num_heads, num_blocks, width)
        return spec, jax.ShapeDtypeStruct(shape, jnp.float32)

    return out


def call(plan, kernel, side, arrays, outs, *, interpret):
    """Runs a kernel, a program for each block of a side, on inputs by name.

    Args:
      plan: of the kernel.
      kernel: called with the plan, the inputs by name, and the outputs.
      side: "queries" or "keys".
      arrays: by name; each is whole for its row and head.
      outs: of `per_event` and `per_entry`.
      interpret: whether Pallas's interpreter runs it.
    """

    def spec(name):
        shape = arrays[name].shape
        if name.endswith("_table"):
            return pl.BlockSpec((None, shape[1]), lambda b, h, block: (h, 0))
        if name.endswith(("_numbers", "_coords")):
            return pl.BlockSpec((None, *shape[1:]), lambda b, h, block: (b, 0, 0))
        zeros = (0,) * (len(shape) - 2)
        return pl.BlockSpec((None, None, *shape[2:]), lambda b, h, block: (b, h, *zeros))

    names = tuple(arrays)
    made = [out(plan) for out in outs]
    if side == "queries":
        num_blocks = plan.padded_queries // plan.tile.block_queries
    else:
        num_blocks = plan.padded_keys // plan.tile.block_keys

    def run(*refs):
        kernel(plan, dict(zip(names, refs, strict=False)), *refs[len(names) :])

    return pl.pallas_call(
        run,
        grid=(plan.num_rows, plan.num_heads, num_blocks),
        in_specs=[spec(name) for name in names],
        out_specs=[spec for spec, _ in made],
        out_shape=[shape for _, shape in made],
        compiler_params=pltriton.CompilerParams(
            num_warps=plan.tile.num_warps, num_stages=plan.tile.num_stages
        ),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*arrays.values())
