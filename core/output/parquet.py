"""Tables as Apache Parquet, typed and compressed, if the package pyarrow is installed."""

import importlib.util
from collections.abc import Sequence
from typing import Any, BinaryIO

from cnnviz.core.files import well_formed

SUFFIX = ".parquet"


def available() -> bool:
    """Whether the package is installed (extra `cnnviz[parquet]`)."""
    return importlib.util.find_spec("pyarrow") is not None


def write(stream: BinaryIO, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table, given as for CSV.

    A column has integers, floats, or else text; an empty cell among numbers is null.
    """
    import pyarrow
    from pyarrow import parquet

    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    arrays = [pyarrow.array(*_typed(list(column), pyarrow)) for column in columns]
    parquet.write_table(pyarrow.table(arrays, names=list(header)), stream)


def _typed(cells: list[Any], pyarrow: Any) -> tuple[list[Any], Any]:
    """The cells as values of one type, and that type."""
    known = [cell for cell in cells if cell is not None and cell != ""]
    whole = all(isinstance(cell, int) for cell in known)
    if known and whole:
        return [None if cell == "" else cell for cell in cells], pyarrow.int64()
    if known and all(isinstance(cell, int | float) for cell in known):
        return [None if cell == "" else cell for cell in cells], pyarrow.float64()
    return [None if cell is None else well_formed(str(cell)) for cell in cells], pyarrow.string()
