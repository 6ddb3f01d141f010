"""`cnnviz layers`: what every layer of a network is, costs, sees and, on data, does."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.networks import LayersCommand
from cnnviz.cli.options import ModelOptions
from cnnviz.cli.run import Run
from cnnviz.core.errors import CnnvizError, UsageError

if TYPE_CHECKING:
    from cnnviz.core.graph.receptive_field import ReceptiveField
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.filters.layers.inventory import Inventory, LayerRow
    from cnnviz.filters.layers.statistics import Statistics

TABLE, PICTURE = "layers.csv", "statistics.png"


def layers(given: LayersCommand) -> None:
    """Runs `cnnviz layers`."""
    run = Run("layers", given.output)
    console = run.console
    if not given.data and (given.gradients or given.limit is not None):
        raise UsageError("--gradients and --limit need DATA: images to run the network on")
    from cnnviz.filters.layers.inventory import take_inventory
    from cnnviz.filters.layers.report import report

    try:
        loaded = run.load(given.model, scores=given.gradients)
    except CnnvizError:
        if given.image_size is None or given.data:
            raise
        loaded = run.load(
            replace(given.model, size=given.image_size), scores=False
        )  # it runs at no other
    found = take_inventory(loaded, given.image_size)
    folder = run.open()
    statistics = None
    if given.data:
        statistics = _measure(
            run, loaded, given.data, found, given.gradients, given.limit, given.model
        )
        _draw(folder, loaded, found, statistics)
    folder.write_csv(TABLE, _CSV, [_csv_row(row) for row in found.rows])
    title = f"{loaded.name} at {found.image_size[0]}x{found.image_size[1]}"
    console.table(title, _COLUMNS + (_EXTRA if statistics else ()), _rows(found, statistics))
    console.line(
        f"{found.parameters:,} parameters, {found.macs:,} MACs"
        + (f"; {found.unused:,} parameters do not run on an image" if found.unused else "")
    )
    if found.untraceable:
        console.note(f"receptive fields are not known: {found.untraceable}")
    errors = statistics.errors if statistics else ()
    run.finish(report(found, statistics), model=loaded, seed=given.model.seed, errors=errors)


def _measure(
    run: Run,
    model: "Model",
    data: list[str],
    found: "Inventory",
    gradients: bool,
    limit: int | None,
    options: ModelOptions,
) -> "Statistics":
    from cnnviz.filters.layers.statistics import measure

    opened = run.data(data, limit, options.seed)
    names = [row.name for row in found.rows if row.name]
    with run.console.progress("measuring", len(opened)) as advance:
        return measure(
            model,
            opened,
            names,
            gradients=gradients,
            batch_size=options.batch_size,
            advance=advance,
        )


def _draw(
    folder: "RunFolder", model: "Model", found: "Inventory", statistics: "Statistics"
) -> None:
    from cnnviz.filters.layers.figures import draw_statistics

    names = [row.name for row in found.rows]
    folder.write_figure(PICTURE, draw_statistics(statistics, names, model.name))


_COLUMNS = ("layer", "type", "output", "params", "MACs", "size", "jump", "start")
_EXTRA = ("zeros", "dead")
_CSV = (
    "layer", "type", "output_shape", "parameters", "macs", "calls", "size_y", "size_x",
    "jump_y", "jump_x", "start_y", "start_x",
)  # fmt: skip


def _shape(row: "LayerRow") -> str:
    return "-" if row.output_shape is None else "x".join(map(str, row.output_shape))


def _csv_row(row: "LayerRow") -> tuple[object, ...]:
    values: tuple[object, ...] = ("",) * 6
    if row.field is not None:
        values = tuple(
            _number(value) for value in (*row.field.size, *row.field.jump, *row.field.start)
        )
    shape = _shape(row)
    return (row.name, row.kind, shape, row.parameters, row.macs, row.calls, *values)


def _number(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else ("-inf" if value < 0 else "inf")


def _pair(values: tuple[float, float]) -> str:
    first, second = map(_number, values)
    return first if first == second else f"{first}, {second}"


def _short(count: int) -> str:
    """1,234,567 as 1.23M: tables are read for orders of magnitude, the files have every digit."""
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)


def _rows(found: "Inventory", statistics: "Statistics | None") -> list[tuple[object, ...]]:
    return [_row(row) + (_extra(row, statistics) if statistics else ()) for row in found.rows]


def _row(row: "LayerRow") -> tuple[object, ...]:
    name = row.name or "(itself)"
    return (
        name if row.calls == 1 else f"{name} ({row.calls} runs)",
        row.kind,
        _shape(row),
        _short(row.parameters),
        _short(row.macs),
        *_seen(row.field),
    )


def _seen(field: "ReceptiveField | None") -> tuple[str, str, str]:
    if field is None:
        return "?", "?", "?"
    return _pair(field.size), _pair(field.jump), _pair(field.start)


def _extra(row: "LayerRow", statistics: "Statistics") -> tuple[object, ...]:
    spread = statistics.activations.get(row.name)
    if spread is None:
        return "-", "-"
    dead: Any = "-" if spread.dead is None else len(spread.dead)
    return f"{spread.zeros / max(1, spread.count):.0%}", dead
