"""Processor time of the default figures of `occlude`, drawn and written as PNG files.

    python benchmarks/drawing.py cnnviz-out/occlude/dog --rounds 10

The run's folder has the scores, so no network is needed. Prints the size of each file, and the
median and the range of the rounds after a first one that loads fonts and colour maps.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.style import WIDTH, style
from cnnviz.occlusion.experiment import look
from cnnviz.occlusion.figures import draw
from cnnviz.occlusion.measurement import load, load_crop
from cnnviz.occlusion.options import PanelSpec


def main() -> None:
    """Times the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--width", type=int, default=WIDTH)
    given = parser.parse_args()
    result, crop = look(load(given.folder), PanelSpec()), load_crop(given.folder)
    seconds = []
    with style(width=given.width), tempfile.TemporaryDirectory() as place:
        for number in range(1 + given.rounds):
            folder = RunFolder.open(Path(place) / str(number))
            folder.caption = "cnnviz occlude"
            started = time.process_time()
            for name, figure in draw(result, None, crop).items():
                folder.write_figure(name, figure)
            seconds.append(time.process_time() - started)
        for name in folder.files:
            path = folder.path / name
            size = "x".join(map(str, Image.open(path).size))
            print(f"{name}: {size}, {path.stat().st_size / 1000:.0f} kB")
    first, *rounds = seconds
    print(
        f"{len(folder.files)} figures at {given.width} pixels: "
        f"{statistics.median(rounds):.3f} s ({min(rounds):.3f} to {max(rounds):.3f}, "
        f"{given.rounds} rounds, 1 process; first {first:.3f}), "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    )


if __name__ == "__main__":
    main()
