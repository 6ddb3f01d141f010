"""The incremental engine: the full engine's numbers, computing only what a mask changes.

The original image runs once and its maps are cached. For a batch of masks, each layer gets the
windows that the masks can reach, cut from the cached maps with the halo that the layer reads, with
the previous layer's changes pasted in. Where the windows have grown to the whole map, or an
operation mixes all positions, the batch continues with whole maps.
Shapes: N positions of a batch, P positions, C channels, K classes, H W rows and columns.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from cnnviz.core.device import give_back_memory, in_batches
from cnnviz.core.graph.geometry import Ints
from cnnviz.core.graph.reach import extents
from cnnviz.occlusion.engines.incremental.batch import Batch, source_windows
from cnnviz.occlusion.engines.incremental.cuda_graph import Replay
from cnnviz.occlusion.engines.incremental.groups import (
    AxisReach,
    Group,
    largest_windows,
    make_groups,
    reach_of_boxes,
)
from cnnviz.occlusion.engines.incremental.schedule import Costs, Scheduler
from cnnviz.occlusion.engines.incremental.steps import Baseline, compile_steps, run_baseline
from cnnviz.occlusion.engines.incremental.windows import Box
from cnnviz.occlusion.engines.network import Network, Scores, ScoreSheet

# From this many positions on, memory is released after each group, which takes 5 % of the time,
# and index tables are not kept for the next image.
_LONG_RUN = 1024
_PLANS = 8
"""How many are kept, with their index tables: those of one image's map and its scorecard."""


@dataclass(eq=False)
class Plan:
    """How the positions of some masks run."""

    boxes_P4: Ints
    groups: list[Group]
    axes: tuple[AxisReach, AxisReach]
    replay: Replay | None = None  # of their launches


def _silent(_steps: int) -> None:
    pass


class IncrementalEngine:
    """Recomputes only what each mask can reach; see the module's docstring."""

    name = "incremental"

    def __init__(
        self,
        network: Network,
        *,
        batch_size: int | None = None,
        note: str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """Prepares the steps of a network that has a graph; raises Untraceable like them."""
        assert network.graph is not None  # noqa: S101 (checked by the caller)
        self.note, self._network, self._graph = note, network, network.graph
        self._layer = self._graph.layers[network.layer] if network.layer else None
        self._steps = compile_steps(self._graph, network.layer)
        self.costs = Costs(self._graph, self._steps, network.device, network.dtype)
        self._scheduler = Scheduler(
            self._graph, self._steps, network.device, network.dtype, batch_size
        )
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._cuda_graphs = cuda_graphs and network.device.type == "cuda"
        # Graphs share their memory: one replay's results are copied before the next begins.
        self._pool = torch.cuda.graph_pool_handle() if self._cuda_graphs else None

    def plan(self, boxes_P4: Ints) -> Plan:
        """Groups the positions of these masks; the last few plans are kept for the next images."""
        key = boxes_P4.tobytes()
        if key not in self._plans:
            self._plans[key] = self._planned(boxes_P4)
        self._plans.move_to_end(key)
        while len(self._plans) > _PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]

    def _planned(self, boxes_P4: Ints) -> Plan:
        rows, columns = reach_of_boxes(self._graph, boxes_P4)
        windows = largest_windows(rows, columns)
        schedule = self._scheduler.schedule(windows)
        batch = self.costs.calls(schedule, windows, schedule.size)

        def calls(groups: int, batches: int) -> float:
            return self.costs.compiling(groups) + batches * batch

        groups = make_groups(rows, columns, self.costs.weight, calls, schedule.size)
        plan = Plan(boxes_P4, groups, (rows, columns))
        if self._cuda_graphs and len(boxes_P4) < _LONG_RUN:
            plan.replay = Replay(
                lambda image, fill: self._sheet((image, fill), plan, _silent).tensors, self._pool
            )
        return plan

    def predict(self, boxes_P4: Tensor) -> float:
        """Predicts the seconds that these masks will take."""
        return self.costs.incremental(
            (len(group.positions_N), group.sizes, self._scheduler.schedule(group.sizes))
            for group in self.plan(boxes_P4.cpu().numpy()).groups
        )

    def predict_full(self, boxes_P4: Tensor, batch_size: int) -> float:
        """Predicts the seconds that the full engine will take for the same masks."""
        return self.costs.full(len(boxes_P4), batch_size)

    @torch.inference_mode()
    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = _silent,
    ) -> Scores:
        """See `Engine.run`."""
        network, plan = self._network, self.plan(boxes_P4.cpu().numpy())
        image, fill = (t.to(network.device, network.dtype) for t in (image_3HW, fill_3HW))
        if plan.replay is not None and plan.replay.ready:
            sheet = ScoreSheet.filled(plan.replay(image, fill))
            progress(len(boxes_P4))
        else:
            sheet = self._sheet((image, fill), plan, progress)
            if plan.replay is not None:
                plan.replay.ran((image, fill), sheet.tensors)
        return sheet.scores()

    def _sheet(
        self, images: tuple[Tensor, Tensor], plan: Plan, progress: Callable[[int], None]
    ) -> ScoreSheet:
        baseline = run_baseline(
            self._steps,
            self._graph.output,
            self._layer,
            images[0][None].contiguous(memory_format=torch.channels_last),
        )
        sheet = ScoreSheet(len(plan.boxes_P4), baseline.logits_1K, baseline.sums_1C)
        for group in plan.groups:
            for positions, logits, sums in self._group(baseline, images, group, plan):
                sheet.write(positions, logits, sheet.watched(sums))
                progress(len(positions))
            if len(plan.boxes_P4) >= _LONG_RUN:
                give_back_memory()
        return sheet

    def _group(
        self,
        baseline: Baseline,
        images: tuple[Tensor, Tensor],
        group: Group,
        plan: Plan,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        count = len(group.positions_N)
        schedule = self._scheduler.schedule(group.sizes)
        batches = -(-count // schedule.size)
        results: list[tuple[Tensor, Tensor, Tensor | None]] = []

        def batch(part: slice) -> None:
            positions = group.positions_N[part]
            map_boxes = group.boxes.get((part.start, len(positions)))
            if map_boxes is None:
                map_boxes = self._map_boxes(group, plan.axes, positions)
                if len(plan.boxes_P4) < _LONG_RUN:
                    group.boxes[part.start, len(positions)] = map_boxes
            source = map_boxes[self._graph.source]
            windows = source_windows(*images, source, plan.boxes_P4[positions])
            run = Batch(self._graph, baseline, map_boxes, len(positions))
            logits, sums = run.run(schedule.segments, self._layer, windows)
            index = source.table("positions", logits.device, lambda: positions)
            results.append((index, logits, sums))

        for _done in in_batches(count, -(-count // batches), batch):
            yield from results
            results.clear()

    def _map_boxes(
        self, group: Group, axes: tuple[AxisReach, AxisReach], positions_N: Ints
    ) -> dict[fx.Node, Box]:
        """The boxes of every map; maps with the same reach share one."""
        rows, columns = axes
        row_N, column_N = rows.number_P[positions_N], columns.number_P[positions_N]
        shared: dict[tuple[int, int, tuple[int, int]], Box] = {}
        map_boxes = {}
        for node, extent in extents(self._graph).items():
            height, width = group.sizes[node]
            tall, wide = rows.spans[node], columns.spans[node]
            key = (id(tall), id(wide), extent)
            if key not in shared:
                top = np.minimum(tall.first_I[row_N], extent[0] - height)
                left = np.minimum(wide.first_I[column_N], extent[1] - width)
                shared[key] = Box(height, width, top, left, extent)
            map_boxes[node] = shared[key]
        return map_boxes
