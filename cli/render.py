"""`cnnviz render`: draw an occlusion run again, for other classes, scores or colours."""

from pathlib import Path
from typing import Any

from cnnviz.cli.commands.images import RenderCommand
from cnnviz.cli.run import Run, caption
from cnnviz.core.errors import UsageError
from cnnviz.occlusion.choices import FOLDER


def render(given: RenderCommand) -> None:
    """Runs `cnnviz render`."""
    run = Run("render", given.output)
    if given.spec.label == FOLDER:
        raise UsageError("--label folder: a run does not tell where its image lay; name the class")
    from cnnviz.core.output.run_folder import safe_name
    from cnnviz.occlusion.archive import load, load_crop
    from cnnviz.occlusion.experiment import look as look_again
    from cnnviz.occlusion.figures import draw
    from cnnviz.occlusion.report import report

    measured = load(given.folder)
    run.caption = _caption(given.folder) or run.caption
    result = look_again(measured, given.spec, engine="none")
    name = safe_name(given.folder.resolve().name)
    out = run.open(run.root / name)
    for file_name, figure in draw(result, given.look, load_crop(given.folder)).items():
        out.write_figure(file_name, figure)
    run.finish([report(result)], model=None, seed=0)


def _caption(folder: Path) -> str:
    """What stood on the figures of the run; empty where its summary is not there."""
    from cnnviz.core.errors import CnnvizError
    from cnnviz.core.files import from_json, read_text
    from cnnviz.core.output.run_folder import SUMMARY

    for place in (folder, folder.resolve().parent):  # of one image, or of several
        try:
            content: Any = from_json(read_text(place / SUMMARY))
            if content["schema"] == "cnnviz.occlude/1":
                model = content["model"]
                return caption("occlude", str(model["name"]), str(model["weights_sha256"]))
        except (CnnvizError, ValueError, LookupError, TypeError):
            continue
    return ""
