"""`cnnviz models`: what can be named, and which weights are on disk already."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from cnnviz.cli.commands.networks import ModelsCommand
from cnnviz.cli.console import Console, findings
from cnnviz.cli.options import OutputOptions
from cnnviz.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from cnnviz.core.models.architectures import Listed


class Weights(TypedDict):
    """Weights that torchvision publishes."""

    name: str
    default: bool
    size: int
    file: str
    on_disk: bool


class Network(TypedDict):
    """A network of torchvision."""

    model: str
    weights: list[Weights]


class Results(TypedDict):
    """What there is."""

    bundled: dict[str, Any] | None
    torchvision: list[Network]
    cache: str


class Listing(TypedDict):
    """What `--json` prints."""

    schema: str
    command: str
    version: str
    results: Results


CARD_LINES = ("architecture", "parameters", "data", "recipe", "limits")


def models(given: ModelsCommand) -> None:
    """Runs `cnnviz models`."""
    from cnnviz.core.models.architectures import list_torchvision
    from cnnviz.core.models.bundled import read_card
    from cnnviz.core.models.published import cache_folder
    from cnnviz.core.output.run_folder import to_json, version

    wanted = (given.pattern or "").lower()
    everything = list_torchvision()
    listed = [entry for entry in everything if wanted in entry.model]
    shows_bundled = wanted in "bundled"
    if not listed and not shows_bundled:
        near = ", ".join(nearest(wanted, dict.fromkeys(entry.model for entry in everything)))
        raise UsageError(f"no model has '{given.pattern}' in its name; the nearest are {near}")
    card = read_card().text if shows_bundled else None
    if given.json:
        content: Listing = {
            "schema": "cnnviz.models/1",
            "command": "models",
            "version": version(),
            "results": {
                "bundled": card,
                "torchvision": _grouped(listed),
                "cache": str(cache_folder()),
            },
        }
        print(to_json(content), end="", file=findings())
        return
    console = Console(OutputOptions())
    if card is not None:
        _show_card(console, card)
    if listed:
        rows = [_row(entry) for entry in listed]
        console.table(
            f"torchvision (weights are kept in {_from_home(cache_folder())})",
            ["--model", "--weights", "pixels", "on disk"],
            rows,
        )
        console.line("--weights: * is the default; none gives random weights.")
    console.line("Your own: --model path/to/file.py:factory, or --checkpoint with an archive.")


def _show_card(console: Console, card: dict[str, Any]) -> None:
    accuracy = card["accuracy"]
    rows = [(name, card[name]) for name in CARD_LINES]
    top1 = f"{accuracy['top1_percent']} % of {card['accuracy_on']}"
    rows.insert(-1, ("accuracy", top1))
    console.table("bundled (the default)", ["", "its card"], rows)
    console.table(
        "bundled: accuracy per class",
        ["class", "percent"],
        list(accuracy["per_class_percent"].items()),
    )


def _from_home(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _row(entry: "Listed") -> tuple[object, ...]:
    star = " *" if entry.is_default else ""
    return entry.model, entry.weights + star, entry.size, entry.file if entry.on_disk else ""


def _grouped(listed: "list[Listed]") -> list[Network]:
    """One entry for each model, its weights inside."""
    names = dict.fromkeys(entry.model for entry in listed)
    return [
        {
            "model": name,
            "weights": [
                {
                    "name": entry.weights,
                    "default": entry.is_default,
                    "size": entry.size,
                    "file": entry.file,
                    "on_disk": entry.on_disk,
                }
                for entry in listed
                if entry.model == name
            ],
        }
        for name in names
    ]
