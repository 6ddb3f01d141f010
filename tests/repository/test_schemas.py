"""Schemas follow from records: what `to_json` writes is what the schema of the record allows."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from cnnviz.core.output.record import HIDDEN, Count, Record, Says, Share, from_json, to_json

SCRIPT = Path(__file__).parents[2] / "docs" / "write_schemas.py"


@dataclass(frozen=True)
class Inner(Record):
    """One entry."""

    class_: str
    seen: Annotated[Count | None, Says("times", optional=True)] = None


@dataclass(frozen=True, kw_only=True)
class Outer(Record):
    """The results."""

    DERIVED = ("total",)
    best: Annotated[Inner | None, Says("the first", optional=True)] = None
    inside: Annotated[Share | None, Says(optional=True, null=True)] = None
    entries: tuple[Inner, ...] = ()
    members: Annotated[object, HIDDEN] = None
    cell: Annotated[str, Says(only="csv")] = ""

    @property
    def total(self) -> Annotated[int, Says("number of entries", minimum=0)]:
        return len(self.entries)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("write_schemas", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, Any] = TypeAdapter(Outer).json_schema(schema_generator=module.Generator)
    return made


def test_keys_are_those_that_are_written(schema: dict[str, Any]) -> None:
    assert list(schema["properties"]) == ["best", "inside", "entries", "total"]
    assert schema["required"] == ["entries", "total"]
    assert schema["additionalProperties"] is False
    inner = schema["$defs"]["Inner"]
    assert inner["required"] == ["class"]
    assert inner["properties"]["seen"] == {"type": "integer", "minimum": 0, "description": "times"}


@pytest.mark.parametrize(
    "record",
    [
        Outer(),
        Outer(best=Inner("a"), inside=float("nan"), entries=(Inner("b", 3),), members=object()),
    ],
)
def test_what_is_written_is_valid_and_read_back(schema: dict[str, Any], record: Outer) -> None:
    content = to_json(record)
    jsonschema.validate(content, schema)
    assert from_json(Outer, content).entries == record.entries


@pytest.mark.parametrize("change", [{"best": None}, {"total": -1}, {"members": 1}, {"cell": ""}])
def test_what_is_not_written_is_invalid(schema: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match=r"None|-1|members|cell"):
        jsonschema.validate(to_json(Outer()) | change, schema)
