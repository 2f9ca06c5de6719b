"""PyTorch's ways to compute the same attention, run one at a time on request.

Usage: attention_torch.py PEER MODE DTYPE INPUTS.npz; then, for each line on standard input, runs
and prints the milliseconds of one run.
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

NUM_CHECKED = 128  # of the last queries
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bucket(values, step, n):
    """The float's own bits, as `stt_kernels.buckets`."""
    return ((values.view(torch.int32) >> (23 - step)) - (127 << step)).clamp(0, n - 1)


class Inputs:
    """The inputs as tensors, heads before events."""

    def __init__(self, path, dtype):
        """Loads them, onto the GPU if there is one."""
        loaded = np.load(path)

        def tensor(name):
            return torch.tensor(loaded[name], device=DEVICE)

        def heads_first(name):
            return tensor(name).to(getattr(torch, dtype)).transpose(1, 2).contiguous()

        self.q, self.k, self.v = (heads_first(name) for name in ("q", "k", "v"))
        self.out_gradient = heads_first("out_gradient")
        self.time_table, self.space_table = tensor("time_table"), tensor("space_table")
        self.times, self.coords = tensor("times"), tensor("coords")

        def side(name, default):
            return tensor(name) if name in loaded else default

        self.query_times = side("query_times", self.times)
        self.query_coords = side("query_coords", self.coords)
        num_rows, num_keys = self.times.shape
        order = torch.arange(num_keys, dtype=torch.int32, device=DEVICE).expand(num_rows, -1)
        self.positions, self.query_positions = order, side("query_positions", order)

    def learned(self):
        """What takes gradients."""
        return [self.q, self.k, self.v, self.time_table, self.space_table]


def sdpa(inputs, q, k, v, time_table, space_table):
    """Scaled dot-product attention with the bias as its mask."""
    gaps = (inputs.query_times[:, :, None] - inputs.times[:, None, :]).abs()
    time_entries = bucket(1.0 + gaps.float(), 1, time_table.shape[1]).long()
    differences = inputs.query_coords[:, :, None] - inputs.coords[:, None, :]
    squares = (differences**2).sum(-1)
    space_entries = bucket(1.0 + squares, 0, space_table.shape[1]).long()
    bias = (time_table[:, time_entries] + space_table[:, space_entries]).transpose(0, 1)
    future = inputs.positions[:, None, None, :] > inputs.query_positions[:, None, :, None]
    bias = bias.masked_fill(future, float("-inf")).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias)


def make_flex(inputs):
    """FlexAttention, compiled, with the bias as its score function."""
    xs = [inputs.coords[..., axis].contiguous() for axis in range(3)]
    query_xs = [inputs.query_coords[..., axis].contiguous() for axis in range(3)]
    num_rows, num_keys = inputs.times.shape

    def may_attend(b, h, i, j):
        return inputs.positions[b, j] <= inputs.query_positions[b, i]

    num_queries = inputs.query_times.shape[1]
    mask = create_block_mask(may_attend, num_rows, None, num_queries, num_keys, device=DEVICE)
    compiled = torch.compile(flex_attention, dynamic=False)

    def flex(inputs, q, k, v, time_table, space_table):
        def score(s, b, h, i, j):
            gap = (inputs.query_times[b, i] - inputs.times[b, j]).abs()
            time_entry = bucket(1.0 + gap.float(), 1, time_table.shape[1])
            square = 0.0
            for query_x, x in zip(query_xs, xs, strict=True):
                difference = query_x[b, i] - x[b, j]
                square = square + difference * difference
            space_entry = bucket(1.0 + square, 0, space_table.shape[1])
            return s + time_table[h, time_entry] + space_table[h, space_entry]

        return compiled(q, k, v, score_mod=score, block_mask=mask)

    return flex


def peak_bytes(run):
    """Gives how far the process grows in a run (Linux), or the memory taken on the GPU."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def status(name):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def main(peer, mode, dtype, path):
    """Answers requests until standard input ends."""
    inputs = Inputs(path, dtype)
    function = torch.compile(sdpa, dynamic=False) if peer == "torch_sdpa_compiled" else None
    function = function or make_flex(inputs)

    def run():
        if mode == "forward":
            with torch.no_grad():
                return function(inputs, *inputs.learned())
        learned = [array.detach().requires_grad_() for array in inputs.learned()]
        out = function(inputs, *learned)
        out.backward(inputs.out_gradient)
        return out.detach()

    try:
        out = run()
        last = out[:2, :, -NUM_CHECKED:]
        answer = {"out": last.transpose(1, 2).float().flatten().tolist()}
        answer["peak_bytes"] = peak_bytes(run)
    except Exception as error:  # its message is the result
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    print(json.dumps(answer), flush=True)
    num_runs = 10 if DEVICE == "cuda" else 1  # a GPU is told ahead of time what comes next
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(num_runs):
            run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        print(json.dumps({"ms": (time.perf_counter() - start) * 1e3 / num_runs}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
