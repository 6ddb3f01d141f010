"""Ends runs of one command at random moments, or starves them of disk; for test_faults.py.

A process of its own, so that everything is imported once and each run is a fork of it. Prints what
went wrong, a line each.
"""

import csv
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch
from PIL import Image
from pyarrow import parquet

from cnnviz.cli.main import run

MOMENTS = 3
HANGS = 150  # seconds; a run that takes longer prints where it is, and ends
OUT = Path("out")


def start(arguments: Sequence[str], largest_file: int | None = None) -> tuple[int, int]:
    """Runs a command line in a child; its process and the reading end of its stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(writing, 2)
        faulthandler.dump_traceback_later(HANGS, exit=True, file=2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if largest_file is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        status = run(arguments)
    except BaseException:  # noqa: BLE001 (whatever it is, it is told)
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(child: int, reading: int) -> tuple[int | None, str]:
    """The child's exit status (None: it was killed) and what it said."""
    with os.fdopen(reading) as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return (None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), said


def broken(folder: Path) -> Iterator[str]:
    """Files that are not whole, and summaries that list what is not there."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.endswith(".tmp"):
            continue
        try:
            check(path)
        except Exception as error:  # noqa: BLE001 (likewise)
            yield f"{path}: {type(error).__name__}: {error}"


def check(path: Path) -> None:
    data = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    elif path.suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
    elif path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(data.decode())))
        assert data.endswith(b"\n")
        assert len({len(row) for row in rows}) == 1
    elif path.suffix == ".parquet":
        parquet.read_table(io.BytesIO(data))
    elif path.suffix == ".json":
        content = json.loads(data)
        if path.name == "summary.json":
            gone = [name for name in content["files"] if not (path.parent / name).is_file()]
            assert not gone, f"lists {gone[0]}"
    elif path.suffix == ".jsonl":
        for line in data.splitlines(keepends=True):
            assert line.endswith(b"\n"), "a line is cut off"
            json.loads(line)
    else:
        raise AssertionError("of a kind that nobody writes")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def ended_at_random(arguments: list[str], number: int, took: float) -> Iterator[str]:
    """Signals at random moments, one run after the other in the same folder."""
    shutil.rmtree(OUT, ignore_errors=True)
    moments = random.Random(number)  # noqa: S311
    for _ in range(MOMENTS):
        child, reading = start([*arguments, "--out", str(OUT), "--overwrite"])
        moment = moments.uniform(0, took)
        time.sleep(moment)
        os.kill(child, number)
        status, said = end(child, reading)
        where = f"{signal.Signals(number).name} after {moment:.2f} of {took:.2f} s"
        if "Traceback" in said or (number == signal.SIGINT and status not in (0, 130)):
            yield f"{where}: {status}: {said}"
        yield from (f"{where}: {text}" for text in broken(OUT))
    status, said = end(*start([*arguments, "--out", str(OUT), "--overwrite"]))
    if status != 0:
        yield f"the next run: {status}: {said}"
    if names(OUT) != names(Path("clean")):
        yield f"the next run leaves {names(OUT) ^ names(Path('clean'))}"


def starved(arguments: list[str]) -> Iterator[str]:
    """No file may grow beyond a limit: a line, status 1, nothing half-written.

    Of images, the summary has the failed ones as errors; of anything else there is none.
    """
    for limit in (0, 100, 1000, 5000):
        shutil.rmtree(OUT, ignore_errors=True)
        status, said = end(*start([*arguments, "--out", str(OUT)], limit))
        lines = [line for line in said.splitlines() if line.startswith("cnnviz: ")]
        if status != 1 or "cannot write" not in "".join(lines) or "Traceback" in said:
            yield f"no file over {limit} bytes: {status}: {said}"
        summaries = list(OUT.rglob("summary.json"))
        untold = [path for path in summaries if not json.loads(path.read_text())["errors"]]
        left = [*OUT.rglob("*.tmp"), *untold]
        yield from (f"no file over {limit} bytes: {path} is left" for path in left)
        yield from broken(OUT)


def removed(arguments: list[str]) -> Iterator[str]:
    """The output folder goes away while the run is under way."""
    from cnnviz.core.output.run_folder import RunFolder

    shutil.rmtree(OUT, ignore_errors=True)
    write = RunFolder.write_bytes

    def late(self: RunFolder, name: str, data: bytes) -> Path:
        shutil.rmtree(OUT, ignore_errors=True)
        return write(self, name, data)

    RunFolder.write_bytes = late  # type: ignore[method-assign]
    status, said = end(*start([*arguments, "--out", str(OUT)]))
    if status != 1 or "cannot write" not in said or "Traceback" in said:
        yield f"the folder removed: {status}: {said}"


def hang(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("a run hangs")


def main() -> None:
    arguments = sys.argv[1:]
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(600)
    # Once here, so that the forks have everything imported.
    run([*arguments, "--out", "warm"])
    began = time.monotonic()
    status, said = end(*start([*arguments, "--out", "clean"]))
    took = time.monotonic() - began
    if status != 0:
        sys.exit(f"a clean run: {status}: {said}")
    for number in (signal.SIGKILL, signal.SIGINT):
        for problem in ended_at_random(arguments, number, took):
            print(problem)  # noqa: T201
    for fault in (starved, removed):
        for problem in fault(arguments):
            print(problem)  # noqa: T201


if __name__ == "__main__":
    main()
