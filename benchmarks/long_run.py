"""One `occlude` over thousands of pictures: does its memory stay where it was, and its pace?

    python benchmarks/long_run.py --images 2000

Pictures of noise are written to a temporary folder, one file in fifty is no picture. The resident
memory is read from the system at every hundredth image.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from timing import resident

from cnnviz.cli import per_image as command
from cnnviz.cli.main import run

EVERY = 100
BAD = 50


def write_pictures(folder: Path, images: int) -> None:
    """Noise of many sizes; one file in `BAD` is text."""
    random = np.random.default_rng(0)
    for number in range(images):
        path = folder / f"{number:05d}.png"
        if number % BAD == BAD - 1:
            path.write_text("no picture", encoding="ascii")
            continue
        size = random.integers(32, 200, 2)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def main() -> None:
    """Runs it and prints a line for each hundred images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    seen: list[tuple[float, float]] = []
    one = command.ImageRun._one

    def counted(*arguments: object) -> int:
        done = one(*arguments)  # type: ignore[arg-type]
        seen.append((time.perf_counter(), resident()))
        if len(seen) % EVERY == 0:
            took = seen[-1][0] - seen[-EVERY][0]
            print(f"{len(seen):6d} images {seen[-1][1]:8.1f} MiB {took / EVERY:6.3f} s an image")
        return done

    command.ImageRun._one = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        pictures, out = Path(place) / "pictures", Path(place) / "out"
        pictures.mkdir()
        write_pictures(pictures, options.images)
        line = ["occlude", str(pictures), "--mask", "16", "--stride", "8", "--quiet"]
        status = run([*line, "--out", str(out)])
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    first, last = seen[EVERY - 1][1], seen[-1][1]
    print(f"status {status}; {len(summary['errors'])} of {options.images // BAD} bad files listed")
    print(f"memory at image {EVERY}: {first:.1f} MiB; at the end {last / first:.3f} times as much")


if __name__ == "__main__":
    main()
