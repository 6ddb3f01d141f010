"""How far do scans in bf16 agree with those in fp32, and what do they save?

    python benchmarks/precision.py DATA [--model squeezenet1_1 --checkpoint FILE]

`max-patches` of all convolutions: the share of filters whose nine strongest images are the same,
in the same order or not, and how many of the nine are shared. `tsne` features: k-NN accuracy by
each. Processor time of the whole commands, on the device that is there.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "bf16")


def ran(line: list[str], out: Path) -> tuple[dict[str, Any], float]:
    """The results of a command, and its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "cnnviz.cli", *line, "--out", str(out), "--quiet"]
    subprocess.run(command, check=True)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results = json.loads((out / "summary.json").read_text(encoding="utf-8"))["results"]
    return results, took


def main() -> None:
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("data")
    options, network = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for precision in PRECISIONS:
            line = ["max-patches", options.data, *network, "--no-pictures"]
            out = Path(place, f"scan-{precision}")
            found[precision] = ran([*line, "--precision", precision], out)
        lists = [
            {
                (entry["layer"], entry["filter"]): [patch["image"] for patch in entry["patches"]]
                for entry in found[precision][0]["filters"]
            }
            for precision in PRECISIONS
        ]
        pairs = [(lists[0][key], lists[1][key]) for key in lists[0]]
        same = sum(one == other for one, other in pairs) / len(pairs)
        alike = sum(set(one) == set(other) for one, other in pairs) / len(pairs)
        shared = sum(len({*one} & {*other}) / max(len(one), 1) for one, other in pairs) / len(pairs)
        gain = found["fp32"][1] / found["bf16"][1]
        print(
            f"{len(pairs)} filters: {same:.1%} of lists equal, {alike:.1%} but for their order; "
            f"{shared:.1%} of images shared; {gain:.2f} times the speed"
        )
        for precision in PRECISIONS:
            line = ["tsne", options.data, *network, "--method", "pca", "--no-pictures"]
            out = Path(place, f"features-{precision}")
            results, took = ran([*line, "--precision", precision], out)
            print(f"{precision}: k-NN accuracy {results['features']['knn_accuracy']}, {took:.1f} s")


if __name__ == "__main__":
    main()
