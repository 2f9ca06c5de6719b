"""Generates the synthetic city: a log to prepare and train on, and its best possible accuracy."""

import pathlib
import sys
from collections.abc import Sequence

from stt_jax import command
from stt_jax.config import CityConfig
from stt_jax.data import city_law, synthetic

USAGE = """
Generates a city of people with homes, work places, rhythms and favourite places, and computes the
best accuracy that any model can reach on it. Writes log.csv.gz, for stt_jax.prepare, and
optimum.arrow, for stt_jax.evaluate. The same flags give the same bytes.
"""


def generate(city: CityConfig) -> None:
    """Draws the city, writes it to `city.output` and prints its size and optimum."""
    made = synthetic.generate_city(city)
    optimum = synthetic.write_city(made, city.output)
    print(
        f"{made.num_events:,} events of {city.num_users:,} people at {city.num_places:,} places "
        f"in {pathlib.Path(city.output) / synthetic.LOG_NAME}"
    )
    for mode in city_law.MODES:
        accuracy, recall = (optimum[f"recall@{k}_{mode}"].mean() for k in (1, 10))
        print(
            f"best possible, request time {mode}: accuracy@1 {accuracy:.4f}, recall@10 {recall:.4f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return command.run(generate, {"city": CityConfig}, argv, usage=USAGE)


if __name__ == "__main__":
    sys.exit(main())
