"""`cnnviz render`: draw an occlusion run again, for other classes, scores or colours."""

from pathlib import Path

from cnnviz.cli.commands.images import RenderCommand
from cnnviz.cli.run import Run, caption
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import safe_name
from cnnviz.core.output.record import to_json
from cnnviz.core.output.summary import read_summary
from cnnviz.occlusion.experiment import look
from cnnviz.occlusion.figures import draw
from cnnviz.occlusion.measurement import load, load_crop
from cnnviz.occlusion.options import FOLDER


def render(given: RenderCommand) -> None:
    """Runs `cnnviz render`."""
    run, folder = Run("render", given.output), given.folder
    if given.spec.label == FOLDER:
        raise UsageError(
            "--label folder: a run does not record the folder of its image; name the class"
        )
    measured = load(folder)
    run.caption = _caption(folder) or run.caption
    result = look(measured, given.spec, engine="none")
    out = run.open(run.root / safe_name(folder.resolve().name.removesuffix(".npz")))
    for file_name, figure in draw(result, given.look, load_crop(folder)).items():
        out.write_figure(file_name, figure)
    run.finish([to_json(result)], model=None, seed=0)


def _caption(folder: Path) -> str:
    """The caption of the run's figures; empty without a readable summary."""
    here = folder.resolve()
    for place in (here, *here.parents[:2]):  # of one image, of several, of their references
        try:
            finished = read_summary(place)
        except CnnvizError:
            continue
        model = finished.summary.model
        if finished.command == "occlude" and model is not None:
            mark = f" ({model.mark})" if model.mark else ""
            return caption("occlude", model.name, model.weights_sha256) + mark
    return ""
