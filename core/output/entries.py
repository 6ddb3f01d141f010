"""What `summary.json` says, as types: the JSON schemas in docs/schemas are generated from them.

Each analysis' `report.py` has its own entries; here stands what all have, or several. `Said` adds
what a schema says of a value beyond its type.
"""

from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NotRequired, Protocol, TypeVar

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from cnnviz.core.choices import Precision
from cnnviz.core.output.numbers import digits

if TYPE_CHECKING:
    from torch import Tensor

    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.models.heads import Head, Reading
    from cnnviz.core.models.load import Model

TOP = 5


class Said:
    """Keywords of JSON Schema for a value, to stand in `Annotated`; pydantic asks for them."""

    def __init__(self, description: str = "", /, **keywords: Any) -> None:
        """Takes a description, or none, and keywords as JSON Schema names them."""
        self._keywords = {"description": description} if description else {}
        self._keywords |= keywords

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema of the type, and what is said of it."""
        return {**handler(schema), **self._keywords}


Count = Annotated[int, Said(minimum=0)]
Positive = Annotated[int, Said(minimum=1)]
Unsigned = Annotated[float, Said(minimum=0)]
Share = Annotated[float, Said(minimum=0, maximum=1)]
Change = Annotated[float, Said(minimum=-1, maximum=1)]
"""A difference of shares, a correlation, a cosine."""
Sides = Annotated[list[Positive], Said("rows, columns", minItems=2, maxItems=2)]
Place = Annotated[list[Count], Said("row, column", minItems=2, maxItems=2)]
Box = Annotated[list[Count], Said("y0, x0, y1, x1, ends excluded", minItems=4, maxItems=4)]
Interval = Annotated[list[float], Said("lower, upper", minItems=2, maxItems=2)]

HEADS = ("softmax", "sigmoid", "none", "probabilities", "probabilities per class")
Results = TypeVar("Results")
Entry = TypeVar("Entry")


def in_order(kind: type[Entry], entry: Entry) -> Entry:
    """The entry with its keys in the order in which its type names them."""
    values: Any = entry
    found: Any = {key: values[key] for key in kind.__annotations__ if key in values}
    return found  # type: ignore[no-any-return]


class ModelEntry(TypedDict):
    """The network that was looked at."""

    name: str
    weights_sha256: Annotated[str, Said(pattern="^[0-9a-f]{64}$")]
    classes: Count
    input_size: Annotated[Sides, Said("rows, columns of the working image")]
    head: Annotated[
        str,
        Said(
            "what the network's numbers mean",
            enum=[*HEADS, *(f"{head} per pixel" for head in HEADS)],
        ),
    ]


def model_entry(model: "Model") -> ModelEntry:
    """What a summary says of the network."""
    return {
        "name": model.name,
        "weights_sha256": model.weights_sha256,
        "classes": model.classes,
        "input_size": list(model.input_size),
        "head": model.region.name if model.region else model.head.name,
    }


class DataEntry(TypedDict):
    """The data set that was gone through."""

    name: str
    sources: Annotated[list[str], Said("as they were named", minItems=1)]
    images: Annotated[Positive, Said("that counted")]
    total: Annotated[Positive, Said("before --limit")]
    fingerprint: Annotated[str, Said("SHA-256 of paths, labels, sizes and times of the images")]


def data_entry(data: "ImageData", images: int) -> DataEntry:
    """What a summary says of the data, of which so many images counted."""
    return {
        "name": data.name,
        "sources": list(data.sources),
        "images": images,
        "total": data.total,
        "fingerprint": data.fingerprint,
    }


class Failure(TypedDict):
    """An input that failed, and why."""

    input: str
    message: str


class ShardEntry(TypedDict):
    """The share of the data set that a run with `--shard` went through."""

    number: Annotated[Count, Said("which, from 0")]
    count: Positive
    of: Annotated[dict[str, Any], Said("what the shares of one run have in common")]


class Summary(TypedDict, Generic[Results]):
    """The keys that every command's summary has."""

    schema: str
    command: str
    version: str
    argv: list[str]
    model: ModelEntry | None
    device: str | None
    precision: Precision | None
    seed: int
    elapsed_seconds: Unsigned
    results: Results
    files: Annotated[list[str], Said("relative to the folder of this summary", uniqueItems=True)]
    errors: list[Failure]
    shard: NotRequired[ShardEntry]


Named = TypedDict("Named", {"class": str, "index": Count})
"""A class, or an output of a regression."""


class ClassEntry(Named):
    """What the network says of it on the untouched image."""

    probability: NotRequired[Share]
    value: NotRequired[Annotated[float, Said("of a regression, in place of the probability")]]
    pixels: NotRequired[
        Annotated[Share, Said("of a dense output: the class's share of the pixels")]
    ]


class Answered(Protocol):
    """What a network said of a picture: `occlude` and `saliency` have it of theirs."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def head(self) -> "Head":
        """What its numbers mean."""

    @property
    def ranking_K(self) -> "Tensor":  # noqa: N802 (a shape)
        """Larger for what it puts first."""

    @property
    def reading(self) -> "Reading | None":
        """Of a dense output, the pixels that were read."""


def add_reading(entry: ClassEntry, answered: Answered, reading: float) -> None:
    """Says what the network says of a class or value.

    Args:
        entry: to be filled in; it has the class.
        answered: what is known of the picture.
        reading: the class's probability, or the value.
    """
    if not answered.head.has_classes:
        entry["value"] = digits(reading)
        return
    entry["probability"] = digits(reading)
    if answered.reading is not None:
        entry["pixels"] = digits(float(answered.reading.shares_K[entry["index"]]))


def class_entry(answered: Answered, index: int, reading: float) -> ClassEntry:
    """A class by name and index, and what the network says of it."""
    entry: ClassEntry = {"class": answered.labels[index], "index": index}
    add_reading(entry, answered, reading)
    return entry


def top_entries(answered: Answered, readings_K: "Tensor") -> list[ClassEntry]:
    """The five most probable classes; of a dense output those that some pixel is predicted as."""
    best = answered.ranking_K.argsort(descending=True, stable=True)[:TOP].tolist()
    if answered.reading is not None:
        best = [index for index in best if answered.reading.shares_K[index] > 0]
    return [class_entry(answered, index, float(readings_K[index])) for index in best]


Read = Annotated[str, Said("of a dense output: where it was read (own pixels, at y,x, inside …)")]


class Placed(TypedDict):
    """What a run over pictures adds to the entry of each."""

    folder: Annotated[str, Said("where its files are, relative to the folder of this summary")]


class Pointing(TypedDict, total=False):
    """With `--expect`: how a map lies to the object."""

    pointing_game_hit: Annotated[bool, Said("with --expect: the map's peak lies on the object")]
    inside: Annotated[
        Share | None,
        Said(
            "with --expect: share of the positive evidence on the object; null where there is none"
        ),
    ]


class Judged(Pointing, total=False):
    """The same, and the object's size."""

    object_share: Annotated[Share, Said("with --expect: the object's share of the working image")]


class AgainstChance(TypedDict):
    """The gain beside that of maps that know nothing."""

    gain: float
    random_maps: list[float]
    interval: Annotated[Interval, Said("of 95 of 100 maps that know nothing")]


class ScorecardEntry(TypedDict):
    """How far a map can be believed: `--trust`."""

    verdict: Literal["no better than chance", "fragile", "believe"]
    reasons: Annotated[list[str], Said("why it is no better")]
    trust: Annotated[
        Share | None,
        Said(
            "two parts relative gain, two parts agreement, one part nearness of peaks; null with "
            "no other method"
        ),
    ]
    gain: Annotated[
        float,
        Said(
            "symmetric relevance gain: area under least important first minus most important "
            "first, mean over fills"
        ),
    ]
    relative_gain: Annotated[Share, Said("over the largest gain of any method here")]
    other_gains: Annotated[dict[str, float], Said("gain of each other method's map")]
    gain_by_fill: Annotated[dict[str, float], Said("the gain by each fill")]
    against_chance: Annotated[AgainstChance, Said("half of the pixels replaced by the mean")]
    insertion: Annotated[float, Said("area under the curve of RISE's protocol, at few shares")]
    deletion: Annotated[float, Said("area under the curve of RISE's protocol, at few shares")]
    agreement: Annotated[dict[str, Change | None], Said("rank correlation with each other method")]
    peak_spread: Annotated[
        Share | None, Said("mean distance of peaks over sizes, fills and methods, in diagonals")
    ]
    stability: Annotated[
        dict[str, Change | None],
        Said("rank correlation with the same method at another size or fill"),
    ]
    certain: Annotated[
        Share | None, Said("share of the pixels whose sign is the same in all of them")
    ]
    randomised: Annotated[
        Change | None,
        Said("rank correlation with the map of the network with its last layers random"),
    ]
    other_class: Annotated[Change | None, Said("mean rank correlation with maps of other classes")]
    completeness: Annotated[
        float | None,
        Said("what non-overlapping masks take in sum over what covering everything takes"),
    ]
