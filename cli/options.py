"""Options that commands share: same name, same meaning everywhere.

A group of options is a frozen dataclass whose fields carry their Typer annotations. A command asks
for a whole group with one parameter (`model: ModelOptions`), and `expand` spreads the group's
fields over the command's signature, which is what Typer reads.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cnnviz.core.choices import Colormap, Precision, pixels
from cnnviz.core.errors import UsageError

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.5,0.5,0.5` to a tuple of floats; None stays None.

    Raises:
        UsageError: a part is not a number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"'{text}' is no list of numbers; {option} takes them with commas: 0.485,0.456,0.406"
        ) from error


def check_alpha(alpha: float) -> None:
    """Raises UsageError unless `alpha` is a weight, 0 to 1."""
    if not 0 <= alpha <= 1:
        raise UsageError(f"--alpha {alpha:g} is out of range; it takes 0 (image) to 1 (map)")


@dataclass(frozen=True)
class ModelOptions:
    """Which network, with which weights, fed how and run where."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A torchvision name, path/to/file.py:factory, package.module:factory, "
            "or the model that ships with cnnviz.",
        ),
    ] = "bundled"
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights from a file: .pth .pt .th .ckpt .safetensors, "
            "or a TorchScript or torch.export archive (these need no --model)."
        ),
    ] = None
    state: Annotated[
        str | None,
        typer.Option(
            help="Which of several sets of weights in the checkpoint, by key or prefix. Default: "
            "the one that fits best, averaged weights (EMA) before raw ones."
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="A torchvision weights name (DEFAULT, IMAGENET1K_V1, …), or none for random ones."
        ),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(help="Class names: a text file, one a line, or a JSON list or map."),
    ] = None
    size: Annotated[
        str | None,
        typer.Option(help="Side of the working image in pixels, or HxW."),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(help="Channel means, as 0.485,0.456,0.406."),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(help="Channel deviations, likewise."),
    ] = None
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda, cuda:N or mps."),
    ] = "auto"
    precision: Annotated[
        Precision,
        typer.Option(help="Number format of weights and activations."),
    ] = Precision.FP32
    batch_size: Annotated[
        str,
        typer.Option(help="Images at a time: auto or a number."),
    ] = "auto"
    seed: Annotated[int, typer.Option(help="Seed of all that is random.")] = 0

    @property
    def working_size(self) -> tuple[int, int] | None:
        """Rows and columns of the working image, where `--size` gives them."""
        return None if self.size is None else pixels(self.size, "--size")

    def load(self) -> "Model":
        """The model these options describe, ready to run."""
        from cnnviz.core.models.load import load_model

        return load_model(
            self.model,
            checkpoint=self.checkpoint,
            weights=self.weights,
            labels=self.labels,
            size=self.working_size,
            mean=numbers(self.mean, "--mean"),
            std=numbers(self.std, "--std"),
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            state=self.state,
        )

    def batch(self) -> int | None:
        """The batch size asked for; None for automatic."""
        from cnnviz.core.device import parse_batch_size

        return parse_batch_size(self.batch_size)


@dataclass(frozen=True)
class OutputOptions:
    """Where results go and what the terminal shows."""

    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output folder (cnnviz-out/<command> if not given)."),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier run's results."),
    ] = False
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as JSON and nothing else."),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="No progress and no table."),
    ] = False

    def folder(self, command: str) -> Path:
        """`--out`, or the command's own folder."""
        return self.out or Path("cnnviz-out") / command


@dataclass(frozen=True)
class MapOptions:
    """Which classes maps are made for, and how they are drawn."""

    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Class to ask about: predicted, topK (top3), a name or an index; repeatable. "
            "Default: predicted."
        ),
    ] = None
    alpha: Annotated[float, typer.Option(help="Weight of the map in the overlay, 0 to 1.")] = 0.5
    colormap: Annotated[Colormap, typer.Option(help="Colours of the maps.")] = Colormap.DIVERGING

    @property
    def targets(self) -> tuple[str, ...]:
        """The classes asked for, as they were written."""
        return tuple(self.target or ("predicted",))


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is an option group spread into the group's fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {
        n: hint for n, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            flat = parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]
            )
            parameters.append(flat)
    for group in groups.values():
        group_hints = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=group_hints[field.name],
            )
            for field in dataclasses.fields(group)
        ]

    def spread(**values: object) -> None:
        made = {
            name: group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    spread.__name__, spread.__doc__ = command.__name__, command.__doc__
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread
