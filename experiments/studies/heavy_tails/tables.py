"""The tables of W4 and W5 as arrays."""

import datetime
import functools
from typing import Any

import numpy as np

from experiments.data import rdata
from experiments.studies.heavy_tails.folds import Table

GENRES = (
    "Action",
    "Animation",
    "Comedy",
    "Drama",
    "Documentary",
    "Romance",
    "Short",
)
# SHA-256 of the columns, as `rdata.load` takes them.
FLIGHTS = "baa0fb086d1ebd7bfa2c08fac24ca2586649ed6645265936b9355366664b2f6a"
MOVIES = "a394d2bec32e5aacebf7cfe5d7f95787080f8c09074db9a85da14e264abd404c"
EXPENSES = "e938109e72420827cace4cee8934c4ba0c3fc73b65e52de0359d0050b18da031"


@functools.cache
def flights() -> tuple[np.ndarray, np.ndarray]:
    """What is known before a departure from New York in 2013, and minutes of delay."""
    names = ("month", "day", "hour", "distance", "carrier", "origin", "arr_delay")
    c = rdata.load("nycflights13", "flights", names, FLIGHTS)
    there = ~np.isnan(c["arr_delay"])
    c = {name: column[there] for name, column in c.items()}
    dates = zip(c["month"].astype(int), c["day"].astype(int), strict=True)
    weekday = np.array([datetime.date(2013, m, d).weekday() for m, d in dates])
    angle = 2 * np.pi * c["hour"] / 24
    numbers = [np.log(c["distance"]), c["hour"], np.sin(angle), np.cos(angle)]
    kinds = [rdata.one_hot(x) for x in (c["month"], weekday, c["carrier"], c["origin"])]
    # Kinds stay 0 and 1: a carrier of 30 flights would be an input of 100 deviations.
    features = [rdata.standardised(np.column_stack(numbers)), *kinds]
    return np.column_stack(features).astype(np.float32), c["arr_delay"]


@functools.cache
def movies() -> tuple[np.ndarray, np.ndarray]:
    """What a film is, and how many people voted for it."""
    names = ("year", "length", "budget", "rating", "mpaa", *GENRES, "votes")
    c = rdata.load("ggplot2movies", "movies", names, MOVIES)
    has_budget = ~np.isnan(c["budget"])
    budget = np.log10(1 + np.where(has_budget, c["budget"], 0))
    numbers = [c["year"], np.log(c["length"]), budget, has_budget, c["rating"]]
    features = [*numbers, rdata.one_hot(c["mpaa"]), *(c[genre] for genre in GENRES)]
    return rdata.standardised(np.column_stack(features)), c["votes"]


@functools.cache
def expenses() -> tuple[np.ndarray, np.ndarray]:
    """Who someone is, and what their medical care cost in a year."""
    numbers = ("lc", "lpi", "fmde", "ndisease", "linc", "lfam", "educdec", "age")
    kinds = ("idp", "physlim", "health", "sex", "child", "black")
    c = rdata.load("Ecdat", "MedExp", (*numbers, *kinds, "med"), EXPENSES)
    features = [c[name] for name in numbers] + [rdata.one_hot(c[x]) for x in kinds]
    return rdata.standardised(np.column_stack(features)), c["med"]


def over(unit: Any, pair: tuple[np.ndarray, np.ndarray]) -> Table:
    """A table whose target is in a unit, such as its mean."""
    features, target = pair
    return Table(features, (target / unit(target)).astype(np.float32))
