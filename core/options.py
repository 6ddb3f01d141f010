"""Options: the fields of a spec, each described once.

A spec is a frozen dataclass whose fields carry an `Option`: a line of help, a parser, a range. The
command line is generated from it (`cli.signatures.expand`), and a spec made in Python checks itself
against it. Imports nothing heavy, so that `--help` is fast.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from cnnviz.core.choices import pixels, whole_number
from cnnviz.core.errors import UsageError

MOST_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class Option:
    """The description of an option.

    Attributes:
        help: its meaning, for the command's help and page.
        names: on the command line; the field's name if empty.
        parse: converts text and the option's name to a value (for a tuple of any length: to each
            item) or raises a UsageError; None if the type is enough.
        least: the minimum.
        most: the maximum.
        metavar: placeholder of the value in the help.
    """

    help: str
    names: tuple[str, ...] = ()
    parse: Callable[[str, str], Any] | None = None
    least: float | None = None
    most: float | None = None
    metavar: str | None = None

    def name(self, field: str) -> str:
        """`--mask`: the option of the field of that name."""
        return self.names[0] if self.names else "--" + field.replace("_", "-")

    def check(self, value: object, name: str) -> None:
        """Raises UsageError where a number, or one of a tuple of them, is out of range."""
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float) or isinstance(number, bool):
                continue
            if not math.isfinite(number):
                raise UsageError(f"{name} {number:g} is not a finite number")
            low = self.least is not None and not number >= self.least
            if low or (self.most is not None and not number <= self.most):
                raise UsageError(
                    f"{name} {number:g} is out of range; it takes {self._range(number)}"
                )

    def _range(self, number: float) -> str:
        whole = isinstance(number, int) and (self.most is None or self.most > 1)
        kind = "a whole number" if whole else "a number"
        least, most = (None if end is None else _plain(end) for end in (self.least, self.most))
        return f"{kind} from {least}" + ("" if most is None else f" to {most}")


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def options_of(spec: type) -> dict[str, Option]:
    """The option of each field of a dataclass that has one."""
    hints = get_type_hints(spec, include_extras=True)
    return {
        field.name: extra
        for field in dataclasses.fields(spec)
        for extra in get_args(hints[field.name])
        if isinstance(extra, Option)
    }


class Spec:
    """What dataclasses of options share: numbers out of range are refused."""

    def __post_init__(self) -> None:
        """Checks every field."""
        for field, option in options_of(type(self)).items():
            option.check(getattr(self, field), option.name(field))


def numbers(text: str, option: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` to a tuple of floats."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"'{text}' is not a list of numbers; {option} takes numbers separated by commas: "
            "0.485,0.456,0.406"
        ) from error


def low_high(text: str, option: str) -> tuple[float, float]:
    """`0,10000` to (0.0, 10000.0)."""
    found = numbers(text, option)
    if len(found) != 2 or not all(map(math.isfinite, found)) or found[0] >= found[1]:
        raise UsageError(
            f"invalid range '{text}'; {option} takes a low and a high value, as 0,10000"
        )
    return found[0], found[1]


def channel_numbers(text: str, option: str) -> tuple[int, ...]:
    """`4,3,2` to (4, 3, 2): channels counted from 1."""
    parts = [part.strip() for part in text.split(",")]
    found = tuple(number for part in parts if (number := whole_number(part)))
    if len(parts) not in (1, 3) or len(found) != len(parts):
        raise UsageError(
            f"invalid channels '{text}'; {option} takes one, or three as red, green and blue: 4,3,2"
        )
    return found


def point(text: str, option: str) -> tuple[float, float]:
    """`120,80` to (120.0, 80.0)."""
    found = numbers(text, option)
    if len(found) != 2 or not all(0 <= number < math.inf for number in found):
        raise UsageError(f"invalid pixel '{text}'; {option} takes its row and column, as 120,80")
    return found[0], found[1]


def box_name(text: str, option: str) -> str:
    """`all`, `3`, `dog` or `dog@2` to itself.

    Raises:
        UsageError: anything else.
    """
    name, at, nth = text.partition("@")
    if not name.strip() or whole_number(text) == 0 or (at and not whole_number(nth)):
        raise UsageError(
            f"invalid box '{text[:40]}'; {option} takes a number from 1, a class, the N-th of a "
            "class as dog@2, or all"
        )
    return text


def file_name(text: str, option: str) -> Path:
    """A path; UsageError if it is empty."""
    if not text.strip():
        raise UsageError(f"{option} '{text}' is not a file name")
    return Path(text)


def name_and_file(text: str, option: str) -> tuple[str, str]:
    """`table=row.json` to (`table`, `row.json`).

    Raises:
        UsageError: not a name and a file.
    """
    name, _, file = text.partition("=")
    if not name.isidentifier() or not file:
        raise UsageError(
            f"invalid input '{text[:60]}'; {option} takes NAME=FILE, as table=row.json"
        )
    return name, file


def images_at_a_time(text: str, option: str) -> int | None:
    """`auto` to None, a positive whole number to itself."""
    if text == "auto":
        return None
    count = whole_number(text)
    if count and count <= MOST_AT_A_TIME:
        return count
    raise UsageError(
        f"invalid batch size '{text[:40]}'; {option} takes auto or a whole number from 1 to "
        f"{MOST_AT_A_TIME}"
    )


# Options that several specs share.
Targets = Annotated[
    tuple[str, ...],
    Option(
        "Class to explain: predicted, topK (top3), a name or an index; repeatable. "
        "Default: predicted.",
        ("--target",),
    ),
]
Masks = Annotated[
    tuple[tuple[int, int], ...],
    Option(
        "Side of the mask in pixels, or HxW; repeat for several. Default: about 28 % of the "
        "shorter side, a multiple of the stride.",
        ("--mask",),
        pixels,
    ),
]
Stride = Annotated[
    tuple[int, int] | int | None,
    Option(
        "Pixels between positions, or HxW. Default: 7 % of the shorter side, at most the mask's.",
        ("--stride",),
        pixels,
        least=1,
        most=99_999,
    ),
]
Fill = Annotated[
    str,
    Option("Content of the masks: mean, gray, black, white, #rrggbb, blur, noise or image-mean."),
]
At = Annotated[
    tuple[float, float] | None,
    Option(
        "For networks with one score per pixel (segmentation): read the scores at this pixel of "
        "the file, as row,column.",
        parse=point,
    ),
]
Inside = Annotated[
    str | None,
    Option(
        "For networks with one score per pixel: read the mean over a region, x0,y0,x1,y1 in the "
        "file's pixels or a JSON file of boxes or polygons per image. Default: the pixels where "
        "each class is predicted."
    ),
]
BatchSize = Annotated[
    int | None, Option("Images per batch: auto or a number. Default: auto.", (), images_at_a_time)
]
Seed = Annotated[int, Option("Random seed.", least=0, most=2**32 - 1)]
