"""`cnnviz models`: what can be named, and which weights are on disk already."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from cnnviz.cli.commands.networks import ModelsCommand
from cnnviz.cli.console import Console, findings
from cnnviz.cli.options import OutputOptions
from cnnviz.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from cnnviz.core.models.zoo.published import Listed


class Results(TypedDict):
    """What there is."""

    bundled: dict[str, Any] | None
    torchvision: list[dict[str, Any]]
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
    from cnnviz.core.models.bundled import read_card
    from cnnviz.core.models.zoo.published import cache_folder, list_torchvision
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
                "torchvision": [asdict(entry) for entry in listed],
                "cache": str(cache_folder()),
            },
        }
        print(to_json(content), end="", file=findings())
        return
    console = Console(OutputOptions())
    if card is not None:
        _show_card(console, card)
    if listed:
        rows = [row for entry in listed for row in _rows(entry)]
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


def _rows(entry: "Listed") -> Iterator[tuple[object, ...]]:
    for weights in entry.weights:
        star = " *" if weights.default else ""
        file = weights.file if weights.on_disk else ""
        yield entry.model, weights.name + star, weights.size, file
