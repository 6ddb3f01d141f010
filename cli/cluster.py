"""Runs on a Ray cluster (`--cluster`): workers compute blocks of images, this process joins them.

This process, the driver, lists the data, hands out blocks to workers (`cli/worker.py`), and stores
the files that come back. It then goes on with the command as if it had computed the pass itself.
Ray restarts nothing by itself: a lost worker is replaced here, where tries are counted.
"""

import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cnnviz.cli.options import ClusterOptions
from cnnviz.cli.worker import INSIDE, Inside, Setting, Worker
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.extras import required, version
from cnnviz.core.models.load import Model
from cnnviz.core.output.blocks import Blocks, Pass, block_size, delete, pack
from cnnviz.core.output.summary import GIVEN_UP, ClusterRecord, GivenUp

IN_FLIGHT = 2
"""Blocks that a worker has at a time, so that it need not wait for the next one."""
TRIES = 3
"""How often a block is started whose worker dies; then it is given up."""
LATE = 1.5
"""A last block that takes so many times the mean is started a second time."""
PATIENCE = 600.0
"""Seconds without any worker after which a run ends."""
MEMORY = 1 << 30
"""Bytes of a worker on the CPU, in addition to four times the network's weights."""
LISTED = 100
"""Lost workers that the summary names."""
AGAIN = "--resume computes them, with fewer --workers or more memory"
"""What to do where blocks were given up."""


def cluster_of(given: Any, note: Callable[[str], None]) -> "Cluster | Inside | None":
    """Where the passes of a command are computed; None for this process alone."""
    if (inside := INSIDE.get()) is not None:
        return inside
    options = getattr(given, "cluster", None)
    if not isinstance(options, ClusterOptions):
        return None
    options.check()
    if options.cluster is None:
        return None
    if getattr(given, "shard", None) is not None:
        raise UsageError("--shard and --cluster: a cluster has all images; leave one out")
    return Cluster(options, given, note)


@dataclass
class _Seat:
    """A worker as the driver sees it.

    Attributes:
        number: from 1.
        actor: its handle.
        starting: the answer that it is ready; None once it is.
        host: where it runs.
        jobs: its blocks, in order, by the answer that is to come.
        since: when it began with the first of them.
    """

    number: int
    actor: Any
    starting: Any = None
    host: str = "a node"
    jobs: dict[Any, range | None] = field(default_factory=dict)
    since: float = 0.0


class Cluster:
    """The driver's side of one run; connects when there is a block to compute."""

    def __init__(self, options: ClusterOptions, record: Any, note: Callable[[str], None]) -> None:
        self.options, self._record, self.note = options, record, note
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray: Any = required("ray", "--cluster ray", "ray")
        self._resume = bool(getattr(record, "resume", False)) and not record.output.overwrite
        self._data: ImageData | None = None
        self._run, self._weights, self._setting = secrets.token_hex(8), 0, None
        self._joined_here = False
        self._per_worker: dict[str, float] = {}
        self._known: dict[str, Path | Any] = {}
        self._counts: Counter[str] = Counter()
        self.seats: list[_Seat] = []
        self.lost: list[str] = []
        self._given_up: tuple[GivenUp, ...] = ()
        self._passes = 0
        self._partial: Path | None = None

    def listed(self, lists: Callable[[], ImageData]) -> ImageData:
        """Lists the images, for all workers."""
        self._data = lists()
        return self._data

    def loaded(self, _options: object, load: Callable[[], Model]) -> Model:
        """Loads the driver's model."""
        model = load()
        weights = [*model.module.parameters(), *model.module.buffers()]
        self._weights = sum(tensor.numel() * tensor.element_size() for tensor in weights)
        return model

    def spread(self, step: Pass, root: Path) -> Sequence[Path]:
        """Computes the blocks that are missing; returns the folders of all, in order.

        The images of blocks that are given up fail. A CnnvizError if these are all blocks, or if
        there are several passes, which would then be of different images.
        """
        self._passes += 1
        if self._given_up:  # in an earlier pass
            self._stop()
        blocks = Blocks(root, step, resume=self._resume)
        step.progress(sum(map(len, blocks.finished)))
        missing = blocks.missing(block_size(len(step.data), step.batch))
        if missing:
            self._call_up(step, len(missing))
            work = _Work(self, step, blocks, missing)
            self._given_up = work.go()
            computed = len(missing) - len(self._given_up)
            self._counts.update(blocks=computed, started_twice=work.twice)
        if self._given_up:
            if self._passes > 1 or not blocks.finished:
                self._stop()
            self._partial = blocks.partial
            reasons = {
                range(block.start, block.stop): f"{GIVEN_UP}, as the worker died ({block.error})"
                for block in self._given_up
            }
            return blocks.joined_without(reasons)
        folders = blocks.joined()
        if step.join is not None:
            self._known[step.name] = folders[0]
        return folders

    def _stop(self) -> NoReturn:
        """Ends a run whose results would not be of the same images in each pass, or of none."""
        self._delete_partial()
        more = len(self._given_up) - 1
        named = self._given_up[0].line + (f", and {more} more blocks" if more else "")
        raise CnnvizError(f"{named}; what is done is kept: {AGAIN}")

    def _delete_partial(self) -> None:
        if self._partial is not None:
            shutil.rmtree(self._partial)

    def reported(self, errors: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """What failed, in a line for each image, or for each block that was given up."""
        given_up = [(block.name, f"{block.line}; {AGAIN}") for block in self._given_up]
        return [*(error for error in errors if GIVEN_UP not in error[1]), *given_up]

    def end(self, root: Path) -> None:
        """Deletes the blocks of a run that is complete; a later one resumes with the others."""
        if self._given_up:
            self._delete_partial()
        else:
            delete(root)

    def record(self) -> ClusterRecord:
        """What the summary reports of the cluster."""
        more = [f"and {len(self.lost) - LISTED} more"] if len(self.lost) > LISTED else []
        return ClusterRecord(
            workers=self._counts["workers"],
            blocks=self._counts["blocks"],
            started_twice=self._counts["started_twice"],
            lost=(*self.lost[:LISTED], *more),
            given_up=self._given_up,
        )

    def close(self) -> None:
        """Ends the workers."""
        for seat in self.seats:
            self.kill(seat)
        self.seats.clear()
        if self._joined_here:
            self.ray.shutdown()
            self._joined_here = False

    def _call_up(self, step: Pass, blocks: int) -> None:
        """Starts workers, and has all come to the pass."""
        if self._setting is None:
            self._connect()
        wanted = min(blocks, self._workers())
        for number in range(len(self.seats) + 1, wanted + 1):
            self.seats.append(_Seat(number, self.actor()))
        for seat in self.seats:
            seat.jobs = dict.fromkeys(seat.jobs)  # of an earlier pass: nobody waits for them
            self.start(seat, step)
        self._counts["workers"] = max(self._counts["workers"], len(self.seats))

    def _connect(self) -> None:
        """Joins the cluster, or starts one on this machine; sends what all workers need."""
        options, address = self.options, self.options.address
        if not self.ray.is_initialized():
            quiet = {"log_to_driver": False, "configure_logging": False}
            try:
                if address is None:
                    cores = float(os.cpu_count() or 1)
                    cpus = max(cores, (options.workers or 1) * options.cpus_per_worker)
                    self.ray.init("local", num_cpus=int(cpus), include_dashboard=False, **quiet)
                else:
                    self.ray.init(address, **quiet)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise CnnvizError(
                    f"--cluster ray:{address or ''} cannot be reached: {one_line(error)}; "
                    "'ray start --head' starts a cluster, 'ray status' shows it"
                ) from error
            self._joined_here = True
        has, gpus = self.ray.cluster_resources(), options.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if has.get("GPU") and self._record.model.device != "cpu" else 0.0
        self._per_worker = {"num_cpus": options.cpus_per_worker, "num_gpus": gpus}
        threads = max(1, int(options.cpus_per_worker))
        assert self._data is not None  # noqa: S101
        setting = Setting(self._record, self._data, str(Path.cwd()), threads, on_cpu=not gpus)
        try:
            self._setting = self.ray.put(setting)
        except (TypeError, ValueError) as error:
            raise CnnvizError(
                f"{self._data.name} cannot be sent to workers: {one_line(error)}"
            ) from error

    def _workers(self) -> int:
        """How many to start: `--workers`, or as many as there are GPUs, or cores and memory for."""
        if self.options.workers:
            return self.options.workers
        has, gpus = self.ray.cluster_resources(), self._per_worker["num_gpus"]
        fit = has.get("CPU", 1.0) / self._per_worker["num_cpus"]
        if gpus:
            return max(1, int(min(fit, has.get("GPU", 0.0) / gpus)))
        memory = has.get("memory", 0.0) / (MEMORY + 4 * self._weights)
        return max(1, int(min(fit, memory)))

    def actor(self) -> Any:
        """Starts a worker."""
        remote = self.ray.remote(max_restarts=0, max_task_retries=0, **self._per_worker)
        return remote(Worker).remote()

    def start(self, seat: _Seat, step: Pass) -> None:
        """Has a worker come to a pass."""
        for name, folder in self._known.items():
            if isinstance(folder, Path):
                self._known[name] = self.ray.put(pack(folder))
        seat.starting = seat.actor.ready.remote(
            self._run, [self._setting], step.name, [*self._known], *self._known.values()
        )

    def kill(self, seat: _Seat) -> None:
        """Ends a worker, if it lives."""
        with suppress(Exception):
            self.ray.kill(seat.actor)


class _Work:
    """The missing blocks of one pass on their way through the workers."""

    def __init__(
        self, cluster: Cluster, step: Pass, blocks: Blocks, missing: Sequence[range]
    ) -> None:
        self._cluster, self._step, self._blocks = cluster, step, blocks
        self._todo, self._open = list(missing), set(missing)
        self._tries: Counter[range] = Counter()
        self._broken: dict[range, str] = {}
        self._seconds: list[float] = []
        self._faults = 0  # workers that died before they were ready, since the last one that was
        self._waiting = time.monotonic()
        self.twice = 0

    def go(self) -> tuple[GivenUp, ...]:
        """Computes all blocks; returns those that were given up."""
        ray, seats = self._cluster.ray, self._cluster.seats
        while self._open:
            for seat in seats:
                self._hand_out(seat)
            by_answer = {answer: seat for seat in seats for answer in seat.jobs}
            by_answer |= {seat.starting: seat for seat in seats if seat.starting is not None}
            for answer in ray.wait(list(by_answer), num_returns=1, timeout=1.0)[0]:
                self._take(by_answer[answer], answer)
            self._check_patience()
        return tuple(
            GivenUp(block.start, block.stop, len(block), TRIES, reason)
            for block, reason in sorted(self._broken.items(), key=lambda item: item[0].start)
        )

    def _check_patience(self) -> None:
        if any(seat.starting is None for seat in self._cluster.seats):
            self._waiting = time.monotonic()
        elif time.monotonic() - self._waiting > PATIENCE:
            raise CnnvizError(
                f"no worker has started in {PATIENCE:g} s; 'ray status' shows what the cluster "
                "has: --cpus-per-worker and --gpus-per-worker must fit on one node"
            )

    def _hand_out(self, seat: _Seat) -> None:
        """Fills a worker's places; at the end, with blocks that others are late with."""
        while seat.starting is None and len(seat.jobs) < IN_FLIGHT:
            block = self._todo.pop(0) if self._todo else self._late(seat)
            if block is None:
                return
            if not seat.jobs:
                seat.since = time.monotonic()
            seat.jobs[seat.actor.block.remote(block.start, block.stop)] = block

    def _late(self, idle: _Seat) -> range | None:
        """The block that has been with another worker for longest, if that is long."""
        if idle.jobs or not self._seconds:
            return None
        copies = Counter(b for seat in self._cluster.seats for b in seat.jobs.values() if b)
        mean, now = sum(self._seconds) / len(self._seconds), time.monotonic()
        for seat in sorted(self._cluster.seats, key=lambda seat: seat.since):
            for block in reversed(seat.jobs.values()):
                single = block in self._open and block is not None and copies[block] == 1
                if single and now - seat.since > LATE * mean:
                    self.twice += 1
                    return block
        return None

    def _take(self, seat: _Seat, answer: Any) -> None:
        """Takes a worker's answer: it is ready, a block is done, or it is dead."""
        errors, first = self._cluster.ray.exceptions, answer == next(iter(seat.jobs), None)
        try:
            value = self._cluster.ray.get(answer)
        except (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError) as error:
            self._replace(seat, error)
            return
        if isinstance(value, CnnvizError):
            raise value
        if answer == seat.starting:
            self._admit(seat, *value)
            return
        block, now = seat.jobs.pop(answer), time.monotonic()
        if first:
            self._seconds.append(now - seat.since)
            seat.since = now
        if block in self._open and block is not None:
            self._open.remove(block)
            self._blocks.add(block, value)
            self._step.progress(len(block))

    def _admit(self, seat: _Seat, host: str, its_version: str, batch: int) -> None:
        """A worker is ready; refuses one that would compute something else."""
        seat.starting, seat.host, self._faults = None, host, 0
        if its_version != version():
            raise UsageError(f"{host} has cnnviz {its_version}, this process {version()}")
        if batch != self._step.batch:
            raise UsageError(
                f"a worker on {host} would run batches of {batch} images, this process "
                f"{self._step.batch}; give --batch-size"
            )

    def _replace(self, seat: _Seat, error: BaseException) -> None:
        """Starts another worker in the place of a dead one; its blocks go back."""
        reason, ran = _reason(error), [block for block in seat.jobs.values() if block in self._open]
        where = f"worker {seat.number} on {seat.host} was lost"
        if seat.starting is not None:
            self._faults += 1
            if self._faults >= TRIES * len(self._cluster.seats):
                raise CnnvizError(f"workers die before they are ready: {reason}")
        elif ran and ran[0] is not None:
            where += f" at images {ran[0].start} to {ran[0].stop}"
            self._tries[ran[0]] += 1
        self._cluster.lost.append(f"{where}: {reason}")
        self._cluster.note(f"{where} ({reason}); another one is started")
        for block in reversed(ran):
            others = [b for s in self._cluster.seats if s is not seat for b in s.jobs.values()]
            if block is None or block in others:
                continue
            if self._tries[block] >= TRIES:
                self._broken[block] = reason
                self._open.remove(block)
            else:
                self._todo.insert(0, block)
        seat.jobs.clear()
        self._cluster.kill(seat)
        seat.actor = self._cluster.actor()
        self._cluster.start(seat, self._step)


def _reason(error: BaseException) -> str:
    """Why a worker died, in a few words."""
    text = " ".join(str(error).split())
    if "OOM" in text or "OutOfMemory" in type(error).__name__:
        return "out of memory"
    if "node" in text.lower() and ("died" in text or "dead" in text):
        return "its node is gone"
    return "its process ended"
