"""How do the time and the memory of attention grow with the length of the sequence?

Measures every candidate of `bench_attention` at one row, four heads of width 32, and draws them. A
candidate that would take more than 8 GiB is left out from that length on.

    python -m benchmarks.plot_attention --output=benchmarks/results/attention_lengths.json
        --torch-python=/path/to/an/environment/with/torch/bin/python
    python -m benchmarks.plot_attention --picture=docs/attention_lengths.svg   # needs .[bench]
"""

import argparse
import json
import pathlib
import sys

from benchmarks import bench_attention, timing
from benchmarks.peers import attention_torch_client

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
QUICK = (128,)
NUM_HEADS, WIDTH = 4, 32
RESULTS = pathlib.Path(__file__).parent / "results" / "attention_lengths.json"
LABELS = {
    "naive": "JAX, bias in memory",
    "jax_nn": "jax.nn, bias in memory",
    "torch_sdpa_compiled": "PyTorch SDPA, bias in memory",
    "torch_flex": "PyTorch FlexAttention",
    "ours_without_tables": "ours, no time or distance",
    "ours": "ours",
}


def measure(options):
    """Gives the rows of every length, and writes them as they come."""
    rows = []
    peers: tuple[str, ...] = attention_torch_client.PEERS
    for length in QUICK if options.quick else LENGTHS:
        shape = (1, length, length, NUM_HEADS, WIDTH)
        rows += bench_attention.bench_shape(f"length {length}", shape, options, peers)
        # PyTorch does not tell before it runs: at twice the length, four times the bytes.
        needed = {row["candidate"]: 4 * (row.get("peak_bytes") or 0) for row in rows}
        fits = [peer for peer in peers if needed.get(peer, 0) <= bench_attention.MAX_TEMP_BYTES]
        for peer in sorted(set(peers) - set(fits)):
            print(f"{peer}: left out past {length}, it would take about {needed[peer]} bytes.")
        peers = tuple(fits)
        timing.write_rows(options.output, rows)
    return rows


def draw(rows, path):
    """Draws time and memory over the length, forward and forward+backward."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex=True, layout="constrained")
    for column, mode in zip(axes.T, ("forward", "forward+backward"), strict=True):
        for candidate, label in LABELS.items():
            found = [row for row in rows if (row["candidate"], row["mode"]) == (candidate, mode)]
            lengths = [row["L"] for row in found]
            style = {"marker": ".", "linewidth": 2.5 if candidate == "ours" else 1.2}
            column[0].plot(lengths, [row["median_ms"] for row in found], label=label, **style)
            mib = [row.get("temp_bytes", row.get("peak_bytes")) / 2**20 for row in found]
            column[1].plot(lengths, mib, **style)
        column[0].set(title=mode, ylabel="ms")
        column[1].set(ylabel="MiB of temporaries", xlabel="events in the sequence")
        for axis in column:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv=None):
    """Measures, or draws what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_attention.add_options(parser)
    parser.add_argument("--picture", type=pathlib.Path, help="draw the rows of --output here")
    options = parser.parse_args(argv)
    options.output = options.output or RESULTS
    options.rounds = options.rounds or (3 if options.quick else 20)
    if options.picture:
        draw(
            [json.loads(line) for line in options.output.read_text().splitlines()], options.picture
        )
    else:
        measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
