"""Columns of numbers that grow on disk, a stretch at a time, and are then read as arrays."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


class ColumnFiles:
    """One file a column; what is held in memory is the stretch that is being added.

    Args:
      folder: an existing one, for the files.
      dtypes: column name (good for a file name) -> numpy dtype.
    """

    def __init__(self, folder: pathlib.Path, dtypes: Mapping[str, Any]):
        self._dtypes = dict(dtypes)
        self._paths = {name: folder / f"{name}.column" for name in dtypes}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Adds rows: one array [n] a column, all of one length."""
        for name, dtype in self._dtypes.items():
            np.ascontiguousarray(columns[name], dtype).tofile(self._files[name])

    def map(self) -> dict[str, np.ndarray]:
        """Ends the adding: each column as a read-only array [N], N > 0, over its file."""
        for file in self._files.values():
            file.close()
        return {
            name: np.asarray(np.memmap(path, self._dtypes[name], "r"))
            for name, path in self._paths.items()
        }
