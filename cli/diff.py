"""`cnnviz diff`: two runs of one command with two networks; what changed?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.runs import DiffCommand
from cnnviz.cli.run import Run
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.core.output.look import Look
from cnnviz.diff.choices import DiffSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnnviz.cli.diff_runs import Finished
    from cnnviz.diff.experiment import DiffResult
    from cnnviz.diff.figures import Small
    from cnnviz.diff.filters import FilterChange

STRENGTHS = {"filters": "norm", "max-patches": "fires on", "ablate": "change of accuracy"}


def diff(given: DiffCommand) -> None:
    """Runs `cnnviz diff`."""
    run = Run("diff", given.output)
    _check_folders(given.runs, run.root)
    from cnnviz.cli.diff_runs import read_run
    from cnnviz.diff.experiment import diff as compare
    from cnnviz.diff.report import report

    a, b = map(read_run, given.runs)
    result = compare(a.side, b.side, given.spec)
    if given.max_flips is not None and result.images is None:
        raise UsageError("--max-flips: these runs tell of no predictions")
    if given.min_agreement is not None and result.agreement is None:
        raise UsageError("--min-agreement: these runs tell of neither maps, filters nor neighbours")
    folder = run.open()
    _write(run, result, _figures(result, a, b, given.spec, given.look) if given.pictures else [])
    results = report(
        result, (a.summary, b.summary), given.spec.top, given.spec.neighbors, given.spec.seed
    )
    _tell(run, results)
    shown = [folder.path / name for name in folder.files if name.startswith("worst.")]
    run.finish(results, model=None, seed=given.spec.seed, show=shown)
    _check(results, given.min_agreement, given.max_flips)


def _check_folders(runs: Sequence[Path], root: Path) -> None:
    """Raises UsageError where there are not two, or the results would go into one of them."""
    if len(runs) != 2:
        raise UsageError(f"diff takes two runs, and was given {len(runs)}")
    for path in runs:
        if path.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{root} holds {path} itself; give --out another folder")


def _write(
    run: Run, result: "DiffResult", figures: "Sequence[tuple[str, Callable[[], Figure | None]]]"
) -> None:
    from cnnviz.diff import report as tables

    if result.lost:
        run.console.note(f"{len(result.lost)} images are left out: one run could not study them")
    if result.images is not None:
        run.folder.write_csv(tables.IMAGES, tables.IMAGES_HEADER, tables.image_rows(result))
    if result.layers:
        run.folder.write_csv(tables.FILTERS, tables.FILTERS_HEADER, tables.filter_rows(result))
    with run.console.progress("drawing", len(figures)) as advance:
        for name, draw in figures:
            figure = draw()
            if figure is not None:
                run.folder.write_figure(name, figure)
            advance(1)


def _figures(
    result: "DiffResult", a: "Finished", b: "Finished", spec: DiffSpec, look: Look
) -> "list[tuple[str, Callable[[], Figure | None]]]":
    """The figures that these runs have, by name."""
    from cnnviz.diff import figures

    command = str(a.summary["command"])
    found: list[tuple[str, Callable[[], Figure | None]]] = []
    mapped = (a.mapped, b.mapped)
    if mapped[0] is not None and mapped[1] is not None:
        pair = (mapped[0], mapped[1])
        found.append(("worst.png", lambda: figures.draw_maps(result, pair, spec.top, look, a.unit)))
    elif result.images is not None and result.images.near is not None:
        found.append(
            ("worst.png", lambda: figures.draw_neighbors(result, a.data.picture, spec.top))
        )
    if result.classes:
        found.append(("classes.png", lambda: figures.draw_classes(result)))
    if result.layers:
        found.append(("layers.png", lambda: figures.draw_layers(result, strength)))
    strength = STRENGTHS.get(command, "")
    strips = {"filters": _kernels, "max-patches": _patches}
    if command in strips:
        cells, heading = strips[command](a, b)
        found.append(
            ("worst.png", lambda: figures.draw_filters(result, cells, spec.top, heading, strength))
        )
    return found


def _kernels(
    a: "Finished", b: "Finished"
) -> "tuple[Callable[[FilterChange], Sequence[Sequence[Small]]], str]":
    """The kernels of a filter: a's, b's and the most alike one of b."""
    from cnnviz.diff.figures import Small
    from cnnviz.filters.kernels.figures import kernel_pixels

    def cells(change: "FilterChange") -> "Sequence[Sequence[Small]]":
        own = kernel_pixels(a.kernels[change.layer][change.filter])
        if own is None:
            return []
        others = b.kernels[change.layer]
        found = [Small(own, "a"), Small(kernel_pixels(others[change.filter]), "b")]
        if change.nearest not in (None, change.filter):
            near = kernel_pixels(others[change.nearest])
            found.append(Small(near, f"b's {change.nearest}"))
        return [found]

    return cells, "kernels that changed most, each over its largest weight"


def _patches(
    a: "Finished", b: "Finished"
) -> "tuple[Callable[[FilterChange], Sequence[Sequence[Small]]], str]":
    """The strongest patches of a filter in both networks."""
    from cnnviz.diff.figures import Small

    entries = [
        {
            (entry["layer"], entry["filter"]): entry["patches"]
            for entry in own.summary["results"]["filters"]
        }
        for own in (a, b)
    ]

    def cells(change: "FilterChange") -> "Sequence[Sequence[Small]]":
        pair = [own[change.layer, change.filter] for own in entries]
        names = [{patch["image"] for patch in own} for own in pair]
        return [
            [
                Small(
                    a.data.picture(patch["image"], patch["box_original"]),
                    f"{side}: {patch['score']:.3g}",
                    framed=patch["image"] in other,
                )
                for patch in own
            ]
            for side, own, other in zip("ab", pair, names[::-1], strict=True)
        ]

    return cells, "strongest patches in a and in b; framed: the image is in both lists"


def _tell(run: Run, results: Mapping[str, Any]) -> None:
    """The tables of the terminal."""
    rows: list[tuple[object, ...]] = []
    agreed, said = results["agreement"], results["predictions"]
    if said is not None:
        rows.append(("images", results["images"]))
        rows.append(("other predictions", f"{said['flipped']} ({said['flips']:.1%})"))
        if said["labelled"]:
            change = f"{said['accuracy_a']:.1%} and {said['accuracy_b']:.1%}"
            rows.append(("right, a and b", f"{change} (p {said['p_value']:.2g})"))
    if agreed is not None:
        low, high = agreed["interval"]
        rows.append((agreed["of"], f"{agreed['mean']:.3f} ({low:.3f} to {high:.3f})"))
    if results["by_chance"] is not None:
        rows.append(("kept by chance", f"{results['by_chance']:.3f}"))
    if (inside := results["inside"]) is not None:
        p = "" if inside["p_value"] is None else f" (p {inside['p_value']:.2g})"
        rows.append(("evidence moved onto the object", f"{inside['mean']:+.3f}{p}"))
    if results["classes"]:
        judged = any(entry["certainty"] is not None for entry in results["classes"])
        none = "none" if judged else "not judged: too few classes of five images"
        rows.append(("changed more than others", ", ".join(results["changed"]) or none))
    run.console.table("What changed from a to b", ("", ""), rows)
    if results["worst_images"]:
        run.console.table("Most changed images", *_images(results["worst_images"]))
    if results["layers"]:
        run.console.table("Layers", *_layers(results["layers"]))


def _images(
    worst: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    numbers = {"agreement": "maps agree", "kept": "neighbours kept", "inside": "inside, b - a"}
    known = [key for key in numbers if any(key in entry for entry in worst)]
    rows: list[tuple[object, ...]] = [
        (
            PurePath(entry["image"]).name,
            entry.get("label", ""),
            _answer(entry, "a"),
            _answer(entry, "b"),
            *(f"{entry[key]:.2f}" if key in entry else "" for key in known),
        )
        for entry in worst
    ]
    return ("image", "label", "a", "b", *(numbers[key] for key in known)), rows


def _answer(entry: Mapping[str, Any], side: str) -> str:
    sure = entry.get(f"probability_{side}")
    return str(entry[side]) + ("" if sure is None else f" {sure:.2f}")


def _layers(
    layers: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    columns = ("layer", "filters", "likeness", "rank corr.", "died", "revived", "better elsewhere")
    return columns, [
        (
            entry["layer"],
            entry["filters"],
            number(entry["likeness"]),
            number(entry["rank_correlation"]),
            len(entry["died"]),
            len(entry["revived"]),
            entry["better_elsewhere"],
        )
        for entry in layers
    ]


def _check(
    results: Mapping[str, Any], min_agreement: float | None, max_flips: float | None
) -> None:
    """Raises CheckFailed where a check does not hold."""
    failed: dict[str, str] = {}
    if max_flips is not None and (flips := results["predictions"]["flips"]) > max_flips:
        failed["flips"] = f"{flips:.1%} of the predictions changed, more than {max_flips:.1%}"
    if min_agreement is not None and (mean := results["agreement"]["mean"]) < min_agreement:
        of = results["agreement"]["of"]
        failed["agreement"] = f"{of}: {mean:.3f}, less than {min_agreement:g}"
    if failed:
        raise CheckFailed("; ".join(failed.values()), failed)
