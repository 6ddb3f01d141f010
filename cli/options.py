"""Options that commands share, and how Typer gets to know of all of them.

A group of options is a frozen dataclass whose fields carry an `Option`: the groups here, and the
specs of the analyses. A command asks for a whole group with one parameter (`model: ModelOptions`);
`expand` spreads the groups over the command's signature, which is what Typer reads, and makes the
groups of what was given. A field that two groups have (`seed`) is one option.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from cnnviz.core.choices import FigureFormat, HeadChoice, Precision, pixels
from cnnviz.core.data.shards import Shard, shard
from cnnviz.core.errors import UsageError
from cnnviz.core.options import BatchSize, Option, Seed, channel_numbers, low_high, numbers

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model


ARGUMENTS, OWN = "What to look at", "How"
"""Headings of a command's help."""
SOURCES = (
    "a folder (a folder per class in it, or flat), files, a CSV or JSONL manifest (path,label), "
    "webdataset's tar files, or cifar10:DIR, mnist:DIR, fashionmnist:DIR, hf-dataset:DIR."
)
IMAGES = (
    "Image files, folders of them, or a data set: a CSV or JSONL manifest, webdataset's tar files, "
    "or cifar10:DIR, mnist:DIR, fashionmnist:DIR, hf-dataset:DIR."
)
Limit = Annotated[int | None, Option("A seeded, class-balanced sample of so many images.", least=1)]
Share = Annotated[
    Shard | None,
    Option(
        "Go through share I (from 0) of N alone, in a folder of its own below --out; cnnviz merge "
        "joins them. Default: what RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID and _COUNT say.",
        ("--shard",),
        shard,
        metavar="I/N",
    ),
]
Resume = Annotated[bool, Option("Go on with a run that was interrupted; what is done stays.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which network, with which weights, fed how and run where."""

    HEADING: ClassVar[str] = "The model"

    model: Annotated[
        str,
        Option(
            "A torchvision name, timm:NAME, hf:FOLDER_OR_ID, path/to/file.py:factory, "
            "package.module:factory, a .onnx file, or the model that ships with cnnviz.",
            ("--model", "-m"),
        ),
    ] = "bundled"
    checkpoint: Annotated[
        Path | None,
        Option(
            "Weights from a file: .pth .pt .th .ckpt .safetensors, "
            "or a TorchScript or torch.export archive (these need no --model)."
        ),
    ] = None
    state: Annotated[
        str | None,
        Option(
            "Which of several sets of weights in the checkpoint, by key or prefix. Default: "
            "the one that fits best, averaged weights (EMA) before raw ones."
        ),
    ] = None
    weights: Annotated[
        str | None,
        Option("A torchvision weights name (DEFAULT, IMAGENET1K_V1, …), or none for random ones."),
    ] = None
    labels: Annotated[
        Path | None, Option("Class names: a text file, one a line, or a JSON list or map.")
    ] = None
    head: Annotated[
        HeadChoice,
        Option(
            "What the network's numbers mean: softmax (one class holds), sigmoid (each class on "
            "its own), probabilities already, none (a regression); auto finds out and says so."
        ),
    ] = HeadChoice.AUTO
    pick: Annotated[
        str | None,
        Option(
            "Which of several outputs, by name or number, or path/to/file.py:function, which "
            "makes a tensor (N,) or (N, K) of what the network puts out.",
            ("--output",),
        ),
    ] = None
    threshold: Annotated[
        float,
        Option("With --head sigmoid: the probability from which a class holds.", least=0, most=1),
    ] = 0.5
    size: Annotated[
        tuple[int, int] | None,
        Option("Side of the working image in pixels, or HxW.", parse=pixels),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None, Option("Channel means, as 0.485,0.456,0.406.", parse=numbers)
    ] = None
    std: Annotated[
        tuple[float, ...] | None, Option("Channel deviations, likewise.", parse=numbers)
    ] = None
    value_range: Annotated[
        tuple[float, float] | None,
        Option(
            "The values of arrays (.npy .npz) and TIFF files that stand for 0 and 1, as 0,10000. "
            "Default: 0,255 for bytes; floats in [0, 1] as they are.",
            ("--range",),
            low_high,
        ),
    ] = None
    show: Annotated[
        tuple[int, ...] | None,
        Option(
            "Channels drawn as red, green and blue, counted from 1, as 4,3,2, or one as grey. "
            "Default: the first three.",
            parse=channel_numbers,
        ),
    ] = None
    device: Annotated[str, Option("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    precision: Annotated[Precision, Option("Number format of weights and activations.")] = (
        Precision.FP32
    )
    batch_size: BatchSize = None
    repeat: Annotated[
        int,
        Option(
            "Passes that scores are averaged over, for a network that answers differently each "
            "time.",
            least=1,
            most=10_000,
        ),
    ] = 1
    seed: Seed = 0

    def load(self, *, scores: bool = True) -> "Model":
        """The model these options describe, ready to run (`load_model` says what `scores` are)."""
        from cnnviz.core.models.load import load_model

        return load_model(
            self.model,
            checkpoint=self.checkpoint,
            weights=self.weights,
            labels=self.labels,
            size=self.size,
            mean=self.mean,
            std=self.std,
            value_range=self.value_range,
            show=self.show,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            state=self.state,
            head=self.head,
            output=self.pick,
            threshold=self.threshold,
            repeat=self.repeat,
            scores=scores,
        )


def _folder(text: str, option: str) -> Path:
    if not text.strip():
        raise UsageError(f"{option} '{text}' names no folder; . is the current one")
    return Path(text)


class ProgressForm(StrEnum):
    """What stderr carries."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class OutputOptions:
    """Where results go and what the terminal shows."""

    HEADING: ClassVar[str] = "Output"

    out: Annotated[
        Path | None,
        Option(
            "Output folder (cnnviz-out/<command> if not given).",
            ("--out", "-o"),
            _folder,
            metavar="<path>",
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace an earlier run's results.")] = False
    json: Annotated[bool, Option("Print the summary as JSON and nothing else.")] = False
    quiet: Annotated[bool, Option("No progress and no table.", ("--quiet", "-q"))] = False
    format: Annotated[
        FigureFormat, Option("What figures are written as; sheets of pixels are always PNG.")
    ] = FigureFormat.PNG
    progress: Annotated[
        ProgressForm, Option("How progress and messages are told on stderr: json for JSON lines.")
    ] = ProgressForm.TEXT
    junit: Annotated[
        Path | None,
        Option(
            "Also write a JUnit report: a test case for each image, with the checks asked for.",
            metavar="<file>",
        ),
    ] = None

    def folder(self, command: str) -> Path:
        """`--out`, or the command's own folder."""
        return self.out or Path("cnnviz-out") / command


@dataclass(frozen=True)
class _Parameter:
    """One argument or option of a command, between Typer and the code.

    Attributes:
        name: of the parameter or field.
        hint: its annotation.
        default: what it is where nothing is given.
    """

    name: str
    hint: Any
    default: Any

    @property
    def option(self) -> Option | None:
        return next((extra for extra in get_args(self.hint) if isinstance(extra, Option)), None)

    @property
    def repeatable(self) -> bool:
        kind = get_args(self.hint)[0]
        return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis

    @cached_property
    def for_typer(self) -> inspect.Parameter:
        """What Typer reads: text where we read it ourselves, a list for a tuple of any length."""
        hint, default, option = self.hint, self.default, self.option
        if option is not None:
            kind = get_args(hint)[0]
            names = option.names
            if kind is bool and not names:
                name = option.name(self.name)
                names = (f"{name}/--no-{name[2:]}" if default else name,)
            if self.repeatable:
                kind = list[str if option.parse else get_args(kind)[0]] | None  # type: ignore[misc]
                default = None
            elif option.parse:
                kind = str | None
            hint = Annotated[kind, typer.Option(*names, help=option.help, metavar=option.metavar)]
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
        )

    def value(self, given: Any) -> Any:
        """What the code gets, from what Typer gives.

        Raises:
            UsageError: text that means nothing, a number out of range.
        """
        option = self.option
        if option is None or given is None:
            return given if option is None else self.default
        name, parse = option.name(self.name), option.parse or (lambda text, _name: text)
        several = self.repeatable
        value = tuple(parse(item, name) for item in given) if several else parse(given, name)
        option.check(value, name)
        return value


class Grouped(TyperCommand):
    """A command whose help has its own options first, then those that all commands share."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments, and the options by the group that they are of."""
        headings: dict[str, str] = getattr(self.callback, "headings", {})
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OWN: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                known = headings.get(parameter.name or "", OutputOptions.HEADING)
                sections.setdefault(ARGUMENTS if argument else known, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


@cache
def _members(group: Any) -> tuple[_Parameter, ...]:
    hints = get_type_hints(group, include_extras=True)
    fields = dataclasses.fields(group)
    return tuple(_Parameter(field.name, hints[field.name], field.default) for field in fields)


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is an option group spread into the group's fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, list[str]] = {}
    found: dict[str, _Parameter] = {}
    headings: dict[str, str] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        members = [_Parameter(name, hints[name], parameter.default)]
        if dataclasses.is_dataclass(hints[name]):
            members = list(_members(hints[name]))
            groups[name] = [member.name for member in members]
        for member in members:
            found.pop(member.name, None)  # shown where the last group has it
            found[member.name] = member
            headings[member.name] = getattr(hints[name], "HEADING", OWN)

    def spread(**given: object) -> None:
        values = {name: found[name].value(item) for name, item in given.items()}
        made = {
            name: hints[name](**{member: values[member] for member in members})
            for name, members in groups.items()
        }
        own = {name: values[name] for name in hints if name in values and name not in groups}
        command(**own, **made)

    spread.__name__, spread.__doc__ = command.__name__, command.__doc__
    parameters = [parameter.for_typer for parameter in found.values()]
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    spread.headings = headings  # type: ignore[attr-defined]
    return spread
