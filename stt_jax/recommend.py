"""Recommend: the most probable next items of one person, at a time and place, or of many.

    python -m stt_jax.recommend --run=runs/nyc --user=470 --time=2012-12-22T08:30 --k=10
    python -m stt_jax.recommend --run=runs/nyc --requests=all --output=lists.parquet

Prints names, probabilities and distances, or writes a table of them: one row a place of a list,
with the columns request, user, rank, item, name, category, probability and distance_km.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import rich.box
import rich.table

from stt_jax import command
from stt_jax.config import ListsConfig, RequestConfig
from stt_jax.data.newitems import open_with_items
from stt_jax.lists import write_lists
from stt_jax.ranking import Recommendation
from stt_jax.recommender import Recommender
from stt_jax.training.run import load_run, read_run_files


def recommend(request: RequestConfig, lists: ListsConfig) -> None:
    """Loads the run, asks, and prints the list or writes the lists."""
    if not request.run:
        raise ValueError("--run is missing: name the directory of a trained run")
    if lists.requests and (request.user or request.traits):
        raise ValueError("--user and --traits are of one person: leave them out with --requests")
    directory = pathlib.Path(request.run)
    _, configs = read_run_files(directory)
    data = request.data or configs["training"].data
    log = open_with_items(data, request.items, request.key_file)
    recommender = Recommender(load_run(directory, log), log)
    if not lists.requests:
        print_list(recommender.recommend([request])[0], request)
        return
    counts = write_lists(recommender, log, request, lists)
    print(
        f"{lists.output}: {counts.places:,} places of {counts.requests - counts.refused:,} lists, "
        f"{counts.shorter:,} of which have fewer than {request.k} items"
    )
    if counts.refused:
        print(f"{counts.refused:,} of {counts.requests:,} requests got no list, such as")
        print("\n".join(f"  {text}" for text in counts.refusals))


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
    return command.run(
        recommend, {"request": RequestConfig, "lists": ListsConfig}, argv, usage=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
