"""Kinds of places in the generated city: how many, when people go, how near they stay.

The numbers are chosen so that a small model can come close to the best possible accuracy within a
minute of training, while one that sees no time and no place stays far below it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

WEEKDAYS, WEEKEND, EVERY_DAY = range(5), range(5, 7), range(7)
FRIDAY_AND_SATURDAY, SUNDAY = range(4, 6), range(6, 7)
CLOSED = -4.0  # schedule outside the hours listed for a category


@dataclasses.dataclass(frozen=True)
class Category:
    """A kind of place.

    Attributes:
      name: as in the log.
      share: of all places.
      reach_km: the distance at which places start to be far; infinity = distance never counts.
      favourites: (anchor, habit) of each favourite of a person: chosen near "home" or "work", and
        its habit[u, p].
      hours: (days, first hour, end hour, schedule in these hours); later rows overwrite earlier.
      private: habit of other places of this kind is PRIVATE instead of 0.
    """

    name: str
    share: float
    reach_km: float
    favourites: tuple[tuple[str, float], ...]
    hours: tuple[tuple[range, int, int, float], ...]
    private: bool = False


CATEGORIES = (
    Category(
        "Home (private)",
        share=0.22,
        reach_km=np.inf,
        favourites=(("home", 6.5),),
        hours=((EVERY_DAY, 0, 24, -1.5), (EVERY_DAY, 0, 8, 2.0), (EVERY_DAY, 21, 24, 1.5)),
        private=True,
    ),
    Category(
        "Office",
        share=0.14,
        reach_km=np.inf,
        favourites=(("work", 6.5),),
        hours=((WEEKDAYS, 8, 18, 2.0), (WEEKDAYS, 12, 14, -1.0)),
        private=True,
    ),
    Category(
        "Coffee Shop",
        share=0.10,
        reach_km=0.5,
        favourites=(("work", 6.5), ("home", 5.0)),
        hours=((EVERY_DAY, 7, 9, 4.0),),
    ),
    Category(
        "Deli / Bodega",
        share=0.10,
        reach_km=0.5,
        favourites=(("work", 6.5), ("home", 5.0), ("work", 3.5)),
        hours=((EVERY_DAY, 12, 14, 5.0),),
    ),
    Category(
        "Restaurant",
        share=0.12,
        reach_km=0.7,
        favourites=(("home", 6.5), ("work", 5.0), ("home", 3.5)),
        hours=((EVERY_DAY, 18, 20, 4.0),),
    ),
    Category(
        "Bar",
        share=0.10,
        reach_km=0.7,
        favourites=(("home", 6.5), ("work", 5.0)),
        hours=((EVERY_DAY, 20, 21, 2.0), (FRIDAY_AND_SATURDAY, 20, 24, 4.5)),
    ),
    Category(
        "Gym",
        share=0.06,
        reach_km=2.0,
        favourites=(("home", 6.5),),
        hours=((WEEKDAYS, 17, 18, 4.0), (WEEKEND, 9, 11, 4.5)),
    ),
    Category(
        "Grocery Store",
        share=0.08,
        reach_km=0.7,
        favourites=(("home", 6.5), ("work", 5.0)),
        hours=((WEEKDAYS, 20, 21, 3.0), (WEEKEND, 11, 12, 4.0)),
    ),
    Category(
        "Park",
        share=0.04,
        reach_km=2.0,
        favourites=(("home", 6.5), ("home", 5.0)),
        hours=((WEEKEND, 14, 18, 4.5),),
    ),
    Category(
        "Movie Theater",
        share=0.04,
        reach_km=2.0,
        favourites=(("home", 6.5),),
        hours=((SUNDAY, 20, 23, 4.0),),
    ),
)


def _schedule_by_hour() -> np.ndarray:
    """float64 [168, number of categories], Monday 0 h first."""
    schedule = np.full((168, len(CATEGORIES)), CLOSED)
    for row, category in enumerate(CATEGORIES):
        for days, first_hour, end_hour, value in category.hours:
            for day in days:
                schedule[24 * day + first_hour : 24 * day + end_hour, row] = value
    return schedule


SCHEDULE = _schedule_by_hour()
FAVOURITE_HABITS = np.array([habit for kind in CATEGORIES for _, habit in kind.favourites])
