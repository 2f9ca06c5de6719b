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
    key_warps: int  # of the key gradient, which goes through the tiles of the query gradient
    key_stages: int
    table_queries: int  # of a program of the table gradient; divides a block of queries
    table_step: int  # of these, how many at once meet a block of keys
    table_warps: int
    scratch_numbers: int  # pairs times heads whose gradient of logits is kept at a time

    @property
    def key_gradient(self) -> TileSizes:
        """By tiles as the query gradient wrote them."""
        tile = self.query_gradient
        return TileSizes(tile.block_queries, tile.block_keys, self.key_warps, self.key_stages)

    @property
    def table_gradient(self) -> TileSizes:
        """A few queries of a block against the blocks of keys that it met."""
        return TileSizes(self.table_queries, self.query_gradient.block_keys, self.table_warps)


def choose_tiles(dtype) -> Tiles:
    """Chooses by what was fastest on an H200 (benchmarks/tune_triton.py, kernels/NOTES.md)."""
    if dtype == jnp.float32:  # products of float32 take registers, not tensor cores
        size = TileSizes(32, 64, num_warps=4)
    else:
        size = TileSizes(64, 64, num_warps=4)
    return Tiles(
        forward=size,
        query_gradient=size,
        key_warps=4,
        key_stages=1,
        table_queries=8,
        table_step=2,
        table_warps=4,
        scratch_numbers=2**28 // jnp.dtype(dtype).itemsize,  # 512 MiB with the weights
    )


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
    def table_pieces(self):
        """(name, first entry, entries) of the pieces in which tables are summed by entry.

        A piece is what one product makes: 64 rows are the fewest that Hopper's tensor cores take
        from four warps, and more than 128 cost registers.
        """
        return tuple(
            (name, first, 64 if size - first <= 64 else 128)
            for name, size in self.table_sizes
            for first in range(0, size, 128)
        )

    @property
    def table_heads(self):
        """Columns of that product: a power of two, 16 at least."""
        return max(pl.next_power_of_2(self.num_heads), 16)

    @property
    def whole_blocks(self):
        """(queries, keys) that are whole blocks of every kernel: sizes are powers of two."""
        forward, backward = self.tiles.forward, self.tiles.query_gradient
        return (
            max(forward.block_queries, backward.block_queries),
            max(forward.block_keys, backward.block_keys),
        )

    @property
    def padded_queries(self):
        """Whole blocks of every kernel."""
        return _round_up(self.num_queries, self.whole_blocks[0])

    @property
    def padded_keys(self):
        """Whole blocks of every kernel."""
        return _round_up(self.num_keys, self.whole_blocks[1])


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


def with_ranges(plan, arrays, side):
    """Adds which blocks of the other side each block of this one may meet, as `<side>_ranges`.

    int32 [B, 2, blocks], the first such block and the one after the last; what lies outside is all
    later, or of other segments. Blocks are those of the plan's tile.
    """
    queries = _extents(arrays["query_numbers"], plan.tile.block_queries)
    keys = _extents(arrays["key_numbers"], plan.tile.block_keys)
    queries = {name: values[:, :, None] for name, values in queries.items()}
    keys = {name: values[:, None] for name, values in keys.items()}
    meets = queries["first_segment"] <= keys["last_segment"]
    meets &= keys["first_segment"] <= queries["last_segment"]
    if plan.rules.causal:
        meets &= keys["first_position"] <= queries["last_position"]
    if side == "key":
        meets = jnp.swapaxes(meets, 1, 2)
    first = jnp.argmax(meets, axis=2)
    end = meets.shape[2] - jnp.argmax(meets[:, :, ::-1], axis=2)
    ranges = jnp.stack([first, jnp.where(jnp.any(meets, axis=2), end, first)], axis=1)
    return arrays | {f"{side}_ranges": ranges.astype(jnp.int32)}


def _extents(numbers, block_size):
    """Gives the least and the largest position and segment of each block, int32 [B, blocks]."""

    def column(name):
        values = numbers[:, flash_inputs.NUMBERS.index(name)]
        return values.reshape(len(values), -1, block_size)

    positions, segments = column("positions"), column("segment_ids")
    limits = jnp.iinfo(jnp.int32)
    valid = segments != 0
    return {
        "first_position": jnp.min(jnp.where(valid, positions, limits.max), axis=2),
        "last_position": jnp.max(jnp.where(valid, positions, limits.min), axis=2),
        "first_segment": jnp.min(jnp.where(valid, segments, limits.max), axis=2),
        "last_segment": jnp.max(jnp.where(valid, segments, limits.min), axis=2),
    }


def cut_queries(plan, arrays):
    """Cuts the queries so that the gradients of a part's logits are at most `scratch_numbers`.

    Returns:
      The plan of a part, the arrays that all parts share, and those of the parts, one after the
      other along a new first axis.
    """
    block, length = plan.whole_blocks[0], plan.padded_queries
    most = plan.tiles.scratch_numbers // (plan.num_rows * plan.num_heads * plan.padded_keys)
    part = _round_up(pl.cdiv(length, pl.cdiv(length, max(block, most))), block)
    num_parts = pl.cdiv(length, part)

    def cut(array):
        array = pad(array, num_parts * part, axis=2)
        array = array.reshape(*array.shape[:2], num_parts, part, *array.shape[3:])
        return jnp.moveaxis(array, 2, 0)

    shared = {name: array for name, array in arrays.items() if not _is_of_queries(name)}
    parts = {name: cut(array) for name, array in arrays.items() if _is_of_queries(name)}
    return dataclasses.replace(plan, num_queries=part), shared, parts


def _is_of_queries(name):
    of_keys = name in ("k", "v") or name.startswith("key_")
    return not of_keys and not name.endswith("_table")


def join_queries(parts):
    """Undoes `cut_queries` for an array [parts, B, H, N, ...]."""
    array = jnp.moveaxis(parts, 0, 2)
    return array.reshape(*array.shape[:2], -1, *array.shape[4:])


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


def per_pair(dtype, *, heads=True) -> Out:
    """Gives an output with a number for each pair of a query and a key, and head if asked for."""

    def out(plan):
        size, shape = plan.tile.block_queries, (plan.padded_queries, plan.padded_keys)
        if not heads:
            spec = pl.BlockSpec((None, size, shape[1]), lambda b, h, block: (b, block, 0))
            return spec, jax.ShapeDtypeStruct((plan.num_rows, *shape), dtype)
        spec = pl.BlockSpec((None, None, size, shape[1]), lambda b, h, block: (b, h, block, 0))
        return spec, jax.ShapeDtypeStruct((plan.num_rows, plan.num_heads, *shape), dtype)

    return out


def per_entry(num_entries) -> Out:
    """Gives an output with a number for each entry and head, for each block of queries."""

    def out(plan):
        heads = plan.table_heads
        num_blocks = plan.padded_queries // plan.tile.block_queries
        spec = pl.BlockSpec((None, None, num_entries, heads), lambda b, h, block: (b, block, 0, 0))
        shape = (plan.num_rows, num_blocks, num_entries, heads)
        return spec, jax.ShapeDtypeStruct(shape, jnp.float32)

    return out


def call(plan, kernel, side, arrays, outs, *, interpret, all_heads=False):
    """Runs a kernel, a program for each block of a side, on inputs by name.

    Args:
      plan: of the kernel.
      kernel: called with the plan, the inputs by name, and the outputs.
      side: "queries" or "keys".
      arrays: by name; each is whole for its row and head.
      outs: of `per_event`, `per_pair` and `per_entry`.
      interpret: whether Pallas's interpreter runs it.
      all_heads: whether a program takes all heads; else there is one for each.
    """

    def spec(name):
        shape = arrays[name].shape
        if name.endswith("_table"):
            return pl.BlockSpec((None, shape[1]), lambda b, h, block: (h, 0))
        headless = name.endswith(("_numbers", "_coords", "_ranges")) or name == "entries"
        if headless or all_heads:
            whole = (0,) * (len(shape) - 1)
            return pl.BlockSpec((None, *shape[1:]), lambda b, h, block: (b, *whole))
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
        grid=(plan.num_rows, 1 if all_heads else plan.num_heads, num_blocks),
        in_specs=[spec(name) for name in names],
        out_specs=[spec for spec, _ in made],
        out_shape=[shape for _, shape in made],
        compiler_params=pltriton.CompilerParams(
            num_warps=plan.tile.num_warps, num_stages=plan.tile.num_stages
        ),
        interpret=interpret,
        name=kernel.__name__,
    )(*arrays.values())
