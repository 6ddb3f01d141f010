"""Results as records: a field says once what it means; JSON, schema, CSV and reader follow from it.

A record is a frozen dataclass below `Record`. Its fields carry descriptions in `Annotated[type,
Says("…")]`; a trailing underscore avoids a keyword (`class_` is the key `class`). Properties listed
in `DERIVED` are keys, too. `to_json` makes plain data of a record, `from_json` reads it back and
checks it (pydantic). `table` makes the header and the rows of a CSV file, `from_table` reads them.
"""

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import core_schema

from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import csv_rows

Kind = TypeVar("Kind")


class InvalidRecord(CnnvizError):  # noqa: N818 (as CheckFailed)
    """Data from a file is not a valid record; the message names the key."""


SLACK = 1e-5
"""Relative tolerance of ranges, for what float32 sums round."""


class Says:
    """The meaning of a field, for `Annotated`: a description and keywords of JSON Schema."""

    def __init__(
        self,
        description: str = "",
        /,
        *,
        optional: bool = False,
        null: bool = False,
        beside: str = "",
        hidden: bool = False,
        only: str = "",
        digits: int | None = None,
        **keywords: Any,
    ) -> None:
        """Describes a field.

        Args:
            description: for the schema.
            optional: the key is absent where the value is None (NaN becomes null).
            null: an optional key may be null, too, where the value is NaN.
            beside: the key is absent where that other field is None, and else may be null.
            hidden: for Python alone: neither in JSON nor in tables (tensors, member rows).
            only: "json" or "csv", for what only one of them has.
            digits: significant digits in JSON; the record's `DIGITS` if None.
            keywords: of JSON Schema (minimum, maximum, minItems, maxItems, enum, pattern); also
                checked when a record is read back.
        """
        self.optional, self.hidden, self.only, self.digits = optional, hidden, only, digits
        self.null, self.beside = null, beside
        self.keywords: dict[str, Any] = {"description": description} if description else {}
        self.keywords |= keywords

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """The type's own check, then the ranges."""
        if self.hidden:
            return core_schema.any_schema()
        checked = core_schema.no_info_after_validator_function(self._checked, handler(source))
        if not self.null:
            return checked
        return core_schema.no_info_wrap_validator_function(
            lambda value, check: math.nan if value is None else check(value), checked
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema of the type, with the description and the keywords."""
        return {**handler(schema), **self.keywords}

    def _checked(self, value: Any) -> Any:
        said = self.keywords
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("it is an integer of more than 64 bits")
        if isinstance(value, int | float) and not math.isnan(value):
            slack = SLACK * abs(value)
            low, high = said.get("minimum", -math.inf), said.get("maximum", math.inf)
            if not low - slack <= value <= high + slack:
                raise ValueError(f"{value:g} is outside {low:g} to {high:g}")
        if isinstance(value, tuple | list):
            fewest, most = said.get("minItems", 0), said.get("maxItems", math.inf)
            if not fewest <= len(value) <= most:
                raise ValueError(f"{len(value)} items")
        if isinstance(value, str):
            if value not in said.get("enum", (value,)):
                raise ValueError(f"'{value[:40]}' is not one of {', '.join(said['enum'])}")
            if "pattern" in said and not re.search(said["pattern"], value):
                raise ValueError(f"'{value[:40]}' does not match {said['pattern']}")
        return value


HIDDEN = Says(hidden=True)
OPTIONAL = Says(optional=True)
Hidden = Annotated[Kind, HIDDEN]
"""A field for Python alone; its default is `ABSENT`, as JSON lacks it."""
ABSENT: Any = None

Count = Annotated[int, Says(minimum=0)]
Positive = Annotated[int, Says(minimum=1)]
Unsigned = Annotated[float, Says(minimum=0)]
Share = Annotated[float, Says(minimum=0, maximum=1)]
Change = Annotated[float, Says(minimum=-1, maximum=1)]
"""A difference of shares, a correlation, a cosine."""
Sides = Annotated[tuple[Positive, ...], Says("rows, columns", minItems=2, maxItems=2)]
Place = Annotated[tuple[Count, ...], Says("row, column", minItems=2, maxItems=2)]
Box = Annotated[tuple[Count, ...], Says("y0, x0, y1, x1, ends excluded", minItems=4, maxItems=4)]
Interval = Annotated[tuple[float, ...], Says("lower, upper", minItems=2, maxItems=2)]


class Record:
    """The base of all records, which are frozen dataclasses."""

    __pydantic_config__: ClassVar[Any] = {
        "alias_generator": lambda name: name.rstrip("_"),
        "populate_by_name": True,
        "arbitrary_types_allowed": True,
        "allow_inf_nan": False,
    }
    DERIVED: ClassVar[tuple[str, ...]] = ()
    DIGITS: ClassVar[int] = 7
    """Significant digits of numbers in JSON, if a field says nothing else; 7 are float32's."""


@dataclass(frozen=True)
class Field:
    """A key of a record: the attribute, its name outside Python, and what it says."""

    attribute: str
    key: str
    hint: Any
    says: tuple[Says, ...]
    default_digits: int = 7

    def has(self, form: str) -> bool:
        """Whether JSON (`json`) or tables (`csv`) have it."""
        return all(not s.hidden and s.only in ("", form) for s in self.says)

    @cached_property
    def optional(self) -> bool:
        """Whether the key is absent where the value is None."""
        return any(s.optional or s.beside for s in self.says)

    @cached_property
    def nullable(self) -> bool:
        """Whether an optional key may be null."""
        return any(s.null or s.beside for s in self.says)

    def absent(self, record: Any) -> bool:
        """Whether JSON lacks the key for this record."""
        if getattr(record, self.attribute) is not None or not self.optional:
            return False
        beside = next((s.beside for s in self.says if s.beside), self.attribute)
        return getattr(record, beside) is None

    @cached_property
    def digits(self) -> int:
        """Significant digits in JSON."""
        return min((s.digits for s in self.says if s.digits), default=self.default_digits)


def _says(hint: Any) -> tuple[Says, ...]:
    if get_origin(hint) is not Annotated:
        return ()
    return tuple(extra for extra in get_args(hint) if isinstance(extra, Says))


@cache
def fields_of(kind: Any) -> tuple[Field, ...]:
    """The fields of a record in their order, then its derived properties."""
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name in getattr(kind, "DERIVED", ()):
        owner: Any = getattr(kind, name)
        getter: Callable[..., Any] = getattr(owner, "fget", None) or owner.func
        found[name] = get_type_hints(getter, include_extras=True)["return"]
    digits = getattr(kind, "DIGITS", 7)
    return tuple(
        Field(name, name.rstrip("_"), hint, _says(hint), digits) for name, hint in found.items()
    )


def rounded(value: float, digits: int = 7) -> float | None:
    """A number as JSON has it; None where it is not a number."""
    return None if math.isnan(value) else float(f"{value:.{digits}g}")


def to_json(value: Any, digits: int = 7) -> Any:
    """A record, or anything made of records, numbers, arrays and text, as JSON data.

    Floats keep `digits` significant digits; NaN becomes None.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return rounded(value, digits)
    if value is None or isinstance(value, bool | str | int):
        return value
    return _structure(value, digits)


def _structure(value: Any, digits: int) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.key: to_json(getattr(value, field.attribute), field.digits)
            for field in fields_of(value.__class__)
            if field.has("json") and not field.absent(value)
        }
    if hasattr(value, "tolist"):
        return to_json(value.tolist(), digits)
    if isinstance(value, Mapping):
        return {str(key): to_json(item, digits) for key, item in value.items()}
    return [to_json(item, digits) for item in value]


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def from_json(kind: type[Kind], data: object, **hidden: object) -> Kind:
    """A record from JSON data, with what JSON does not have given by name."""
    content = {**data, **hidden} if isinstance(data, Mapping) else data
    try:
        found: Kind = _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the content"
        raise InvalidRecord(f"{place}: {first['msg']}") from error
    return found


def table(
    kind: Any, records: Iterable[Any]
) -> tuple[tuple[str, ...], Iterator[tuple[object, ...]]]:
    """The header and the rows of a CSV file; an unknown value is an empty cell, True is 1."""
    fields = [field for field in fields_of(kind) if field.has("csv")]

    def cell(value: Any, digits: int) -> object:
        plain = to_json(value, digits)
        return "" if plain is None else int(plain) if isinstance(plain, bool) else plain

    rows = (tuple(cell(getattr(r, f.attribute), f.digits) for f in fields) for r in records)
    return tuple(field.key for field in fields), rows


def from_table(kind: type[Kind], text: str) -> list[Kind]:
    """The records in the text of a CSV file that `table` made."""
    record: Any = kind
    kinds = {field.key: _plain_type(field.hint) for field in fields_of(record)}
    try:
        header, *lines = csv_rows(text)
        rows = [
            {
                key: None if cell == "" and kinds.get(key) is not str else cell
                for key, cell in zip(header, cells, strict=True)
            }
            for cells in lines
        ]
    except (ValueError, csv.Error) as error:
        raise InvalidRecord(f"the table is damaged: {error}") from error
    found: list[Kind] = from_json(list[record], rows)
    return found


def _plain_type(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
