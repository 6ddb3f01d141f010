"""`cnnviz render`: draw an occlusion run again, for other classes, scores or colours."""

from pathlib import Path
from typing import Annotated

import typer

from cnnviz.cli.options import MapOptions, OutputOptions, check_alpha
from cnnviz.cli.run import Run
from cnnviz.occlusion.choices import Score, Upsample


def render(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What cnnviz occlude wrote for one image.")
    ],
    maps: MapOptions,
    output: OutputOptions,
    score: Annotated[Score, typer.Option(help="What is compared.")] = Score.PROBABILITY,
    upsample: Annotated[
        Upsample, typer.Option(help="From positions to pixels.")
    ] = Upsample.COVERAGE,
    label: Annotated[str | None, typer.Option(help="The true class.")] = None,
) -> None:
    """Draw an occlusion run again without the model: other classes, scores, colours.

    cnnviz render cnnviz-out/occlude/dog --target tabby --score loss --colormap jet
    """
    run = Run("render", output)
    check_alpha(maps.alpha)
    from cnnviz.core.output.panels import Look
    from cnnviz.core.output.run_folder import safe_name
    from cnnviz.occlusion.archive import load, load_crop
    from cnnviz.occlusion.experiment import OcclusionSpec, look
    from cnnviz.occlusion.figures import draw
    from cnnviz.occlusion.report import report

    measured = load(folder)
    spec = OcclusionSpec(targets=maps.targets, score=score, upsample=upsample, label=label)
    result = look(measured, spec, engine="none")
    name = safe_name(folder.resolve().name)
    out = run.open(run.root / name)
    for file_name, figure in draw(
        result, Look(maps.colormap, maps.alpha, load_crop(folder))
    ).items():
        out.write_figure(file_name, figure)
    run.finish([report(result)], model=None, seed=0)
