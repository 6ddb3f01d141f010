"""Tables as parquet hold what the CSV beside them holds, typed."""

import csv
from pathlib import Path

import pytest
from pyarrow import parquet as pq

from cnnviz.core.output import parquet
from cnnviz.core.output.run_folder import RunFolder

HEADER = ("name", "count", "share", "mixed", "empty")
ROWS = [("<a>", 1, 0.5, 1, ""), ("7", 2, 1, "x", ""), ("", "", "", 2.5, "")]


def test_columns_have_types_and_the_cells_of_the_csv(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "out")
    folder.write_csv("t.csv", HEADER, iter(ROWS))
    assert folder.files == ["t.parquet", "t.csv"]
    found = pq.read_table(tmp_path / "out" / "t.parquet")
    kinds = [str(field.type) for field in found.schema]
    assert kinds == ["string", "int64", "double", "string", "string"]
    assert found.column("share").to_pylist() == [0.5, 1.0, None]
    with (tmp_path / "out" / "t.csv").open(newline="") as stream:
        cells = list(csv.reader(stream))
    assert cells[0] == list(HEADER)
    for row, texts in zip(found.to_pylist(), cells[1:], strict=True):
        for value, text in zip(row.values(), texts, strict=True):
            assert text == "" if value is None else value == type(value)(text)


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "out").write_csv("t.csv", HEADER, [])
    assert pq.read_table(tmp_path / "out" / "t.parquet").column_names == list(HEADER)


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunFolder.open(tmp_path / name).write_csv("t.csv", HEADER, ROWS)
    assert (tmp_path / "a/t.parquet").read_bytes() == (tmp_path / "b/t.parquet").read_bytes()


def test_without_the_package_there_is_the_csv_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "available", lambda: False)
    folder = RunFolder.open(tmp_path / "out")
    folder.write_csv("t.csv", HEADER, ROWS)
    assert folder.files == ["t.csv"]
