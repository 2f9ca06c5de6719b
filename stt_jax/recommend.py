"""Recommend: the most probable next items of one person, at a time and place.

    python -m stt_jax.recommend --run=runs/nyc --user=470 --time=2012-12-22T08:30 --k=10

Prints names, probabilities and distances.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import rich.box
import rich.table

from stt_jax import command
from stt_jax.config import RequestConfig
from stt_jax.data.newitems import open_with_items
from stt_jax.ranking import Recommendation, recommend_items
from stt_jax.training.run import load_run, read_run_files


def recommend(request: RequestConfig) -> None:
    """Loads the run, asks and prints the list."""
    if not request.run:
        raise ValueError("--run is missing: name the directory of a trained run")
    directory = pathlib.Path(request.run)
    _, configs = read_run_files(directory)
    data = request.data or configs["training"].data
    log = open_with_items(data, request.items, request.key_file)
    print_list(recommend_items(load_run(directory, log), log, request), request)


def print_list(recommendations: list[Recommendation], request: RequestConfig) -> None:
    """Prints one row an item."""
    when = f" at {request.time}" if request.time else ""
    where = f" near {request.latitude}, {request.longitude}" if request.latitude else ""
    table = rich.table.Table(
        title=f"next for {request.user or 'somebody new'}{when}{where}",
        title_justify="left",
        box=rich.box.SIMPLE,
    )
    for title, justify in (
        ("", "right"), ("item", "left"), ("name", "left"), ("category", "left"),
        ("probability", "right"), ("km", "right"),
    ):  # fmt: skip
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for rank, item in enumerate(recommendations, start=1):
        distance = "" if item.distance_km is None else f"{item.distance_km:.2f}"
        table.add_row(
            str(rank), item.item_id, item.name, item.category, f"{item.probability:.4f}", distance
        )
    console = command.table_console()
    console.print(table)
    if not recommendations:
        console.print(
            "no item is left: loosen --radius_km, --max_per_category or --exclude_seen=true"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(recommend, {"request": RequestConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
