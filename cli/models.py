"""`cnnviz models`: what can be named, and which weights are on disk already."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnviz.cli.commands.networks import ModelsCommand
from cnnviz.cli.console import Console, print_json
from cnnviz.cli.options import OutputOptions
from cnnviz.core.errors import UsageError, nearest
from cnnviz.core.extras import version
from cnnviz.core.models.bundled import read_card
from cnnviz.core.models.zoo.published import Listed, cache_folder, list_torchvision
from cnnviz.core.output.record import Record, to_json
from cnnviz.core.output.run_folder import to_json as json_text

CARD_LINES = ("architecture", "parameters", "data", "recipe", "limits")


@dataclass(frozen=True)
class Results(Record):
    """The models that can be named."""

    bundled: dict[str, Any] | None
    torchvision: list[Listed]
    cache: str


@dataclass(frozen=True)
class Listing(Record):
    """The output of `--json`."""

    schema: str
    command: str
    version: str
    results: Results


def models(given: ModelsCommand) -> None:
    """Run `cnnviz models`."""
    pattern = (given.pattern or "").lower()
    everything = list_torchvision()
    listed = [entry for entry in everything if pattern in entry.model]
    card = read_card().text if pattern in "bundled" else None
    if not listed and card is None:
        near = ", ".join(nearest(pattern, [entry.model for entry in everything]))
        raise UsageError(f"no model has '{given.pattern}' in its name; the nearest are {near}")
    if given.json:
        results = Results(card, listed, str(cache_folder()))
        listing = Listing("cnnviz.models/1", "models", version(), results)
        print_json([json_text(to_json(listing))])
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
    console.table("bundled (the default)", ["", "model card"], rows)
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
