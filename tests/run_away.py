"""Runs command lines, given as JSON, on the device of `away.py`; for test_device.py.

A process of its own, since the device stays known to torch. Prints a line of JSON for each: the
exit status, or what was raised, and how many numbers came back to the processor.
"""

import json
import sys
import traceback

import away
import torch

from cnnviz.cli.main import run
from cnnviz.core.models import load


def main() -> None:
    if not away.register():
        sys.exit("this torch has no such devices")
    load.pick_device = lambda _name: torch.device(away.NAME, 0)
    for line in json.loads(sys.argv[1]):
        try:
            with away.away():
                said: object = run([*line, "--quiet"])
        except Exception:  # noqa: BLE001 (whatever it is, it is told)
            said = traceback.format_exc()[-2000:]
        print("away", json.dumps([said, dict(away.BACK)]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
