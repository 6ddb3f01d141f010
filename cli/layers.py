"""`cnnviz layers`: every layer's type, cost and receptive field, and its values on data."""

from dataclasses import replace

from cnnviz.cli.commands.networks import LayersCommand
from cnnviz.cli.run import Run
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.output.record import to_json
from cnnviz.filters.layers.figures import draw_statistics
from cnnviz.filters.layers.inventory import take_inventory
from cnnviz.filters.layers.results import (
    TABLE,
    TABLE_HEADER,
    FieldRecord,
    Inventory,
    LayerRow,
    MeasuredLayer,
    table_rows,
)
from cnnviz.filters.layers.statistics import Statistics, measure

PICTURE = "statistics.png"
_COLUMNS = ("layer", "type", "output", "params", "MACs", "size", "jump", "start")
_MEASURED = ("zeros", "dead")


def layers(given: LayersCommand) -> None:
    """Runs `cnnviz layers`."""
    run = Run("layers", given.output)
    if not given.data and (given.gradients or given.limit is not None):
        raise UsageError("--gradients and --limit need DATA: images to run the network on")
    if not given.data and given.cluster.cluster is not None:
        raise UsageError("--cluster needs DATA: images to run the network on")
    if given.resume and given.cluster.cluster is None:
        raise UsageError("--resume needs --cluster: one process keeps no state of layers")
    model = _load(run, given)
    inventory = take_inventory(model, given.image_size)
    folder = run.open(resume=given.resume)
    errors: tuple[tuple[str, str], ...] = ()
    if given.data:
        statistics = _measure(run, given, given.data, model, inventory)
        inventory, errors = statistics.added_to(inventory), statistics.errors
        folder.write_figure(PICTURE, draw_statistics(inventory, model.name))
    folder.write_csv(TABLE, TABLE_HEADER, table_rows(inventory.layers))
    _show(run, inventory, model.name)
    run.finish(to_json(inventory), model=model, seed=given.model.seed, errors=errors)


def _load(run: Run, given: LayersCommand) -> Model:
    """The network; if it does not run at its default size, at `--image-size`."""
    try:
        return run.load(given.model, scores=given.gradients)
    except CnnvizError:
        if given.image_size is None or given.data:
            raise
        return run.load(replace(given.model, size=given.image_size), scores=False)


def _measure(
    run: Run, given: LayersCommand, sources: list[str], model: Model, inventory: Inventory
) -> Statistics:
    data = run.data(sources, given.limit, given.model.seed)
    with run.console.progress("running the model", len(data), "images") as advance:
        return measure(
            model,
            data,
            [row.name for row in inventory.layers if row.name],
            gradients=given.gradients,
            batch_size=given.model.batch_size,
            advance=advance,
            spread=run.spread,
        )


def _show(run: Run, inventory: Inventory, name: str) -> None:
    title = "{} at {}x{}".format(name, *inventory.image_size)
    columns = _COLUMNS + (_MEASURED if inventory.data else ())
    run.console.table(title, columns, [_row(row) for row in inventory.layers])
    unused = inventory.parameters_unused
    run.console.sentence(
        f"{inventory.parameters:,} parameters, {inventory.macs:,} MACs"
        + (f"; {unused:,} parameters do not run on an image" if unused else "")
    )
    if inventory.untraceable:
        run.console.note(f"receptive fields are not known: {inventory.untraceable}")


def _row(row: LayerRow) -> tuple[object, ...]:
    name = row.name or "(network)"
    return (
        name if row.calls == 1 else f"{name} ({row.calls} runs)",
        row.type_,
        row.shape,
        _short(row.parameters),
        _short(row.macs),
        *_field(row.receptive_field),
        *(_sparsity(row) if isinstance(row, MeasuredLayer) else ()),
    )


def _short(count: int) -> str:
    """1,234,567 as 1.23M; the files have every digit."""
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)


def _field(field: FieldRecord | None) -> list[str]:
    if field is None:
        return ["?"] * 3
    pairs = zip(field.texts[::2], field.texts[1::2], strict=True)
    return [y if y == x else f"{y}, {x}" for y, x in pairs]


def _sparsity(row: MeasuredLayer) -> tuple[object, object]:
    spread = row.activations
    if spread is None:
        return "-", "-"
    return f"{spread.zeros:.0%}", "-" if spread.dead_channels is None else len(spread.dead_channels)
