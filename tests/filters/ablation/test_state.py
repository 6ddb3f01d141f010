"""An ablation that is cut off goes on, and its shares add up, as if nothing had happened."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import model_of
from parts import slow_but
from PIL import Image
from torch import nn

from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.output.journal import Journal, join
from cnnviz.filters.ablation.ablation import Ablation, AblationResult
from cnnviz.filters.ablation.options import AblationSpec, Mode
from cnnviz.filters.ablation.tally import merge

SPEC = AblationSpec(filters=("0:1",), sweep=("0",), batch_size=2)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    """Eleven pictures, one of them damaged, of two classes."""
    generator = np.random.default_rng(0)
    rows = []
    for n in range(11):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n:02}.png")
        rows.append(json.dumps({"path": f"{n:02}.png", "label": "ab"[n % 2]}))
    (tmp_path / "03.png").write_bytes(b"no picture")
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    return open_data([str(tmp_path / "list.jsonl")])


def network(kind: Kind) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    model = model_of(module, (8, 8), ("a", "b"))
    return replace(model, head=Head(kind)) if kind is not Kind.SOFTMAX else model


class Stop(Exception):  # noqa: N818 (a power cut)
    pass


def stopping(after: int) -> Callable[[int], None]:
    done = 0

    def progress(images: int) -> None:
        nonlocal done
        done += images
        if done >= after:
            raise Stop

    return progress


def numbers(result: AblationResult) -> Any:
    found = result.counts or result.measured
    return json.dumps(
        [found, result.indices, result.errors, result.effects],
        default=lambda o: o.tolist() if isinstance(o, np.ndarray) else vars(o),
    )


KINDS = (Kind.SOFTMAX, Kind.SIGMOID)
CUT_OFF = [(kind, after) for kind in KINDS for after in (2, 5, 11)]
SHARES = [(kind, count) for kind in KINDS for count in (2, 3)]


@pytest.mark.parametrize(("kind", "after"), slow_but(CUT_OFF, Kind.SOFTMAX, (Kind.SIGMOID, 5)))
def test_a_run_that_was_cut_off_goes_on(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, after: int
) -> None:
    monkeypatch.setattr(Journal, "due", True)
    ablation = Ablation(network(kind), data, SPEC)
    whole = numbers(ablation.run())
    path = tmp_path / "tally.npz"
    with pytest.raises(Stop):
        ablation.run(stopping(after), ablation.journal(path, resume=False))
    done: list[int] = []
    again = ablation.run(done.append, ablation.journal(path, resume=True))
    assert numbers(again) == whole
    assert sum(done) == len(data)
    assert done[0] >= after - 3  # of before, in one step


@pytest.mark.parametrize(("kind", "count"), slow_but(SHARES, Kind.SOFTMAX, (Kind.SIGMOID, 2)))
def test_shares_add_up_to_the_whole(
    data: ImageData, tmp_path: Path, kind: Kind, count: int
) -> None:
    model, spec = network(kind), replace(SPEC, batch_size=1)  # a share cuts no batch
    whole = Ablation(model, data, spec)
    paths = [tmp_path / f"{number}.npz" for number in range(count)]
    for number, path in enumerate(paths):
        share = Ablation(model, data.share(Shard(number, count)), spec)
        share.run(journal=share.journal(path, resume=False))
    joined = tmp_path / "joined.npz"
    join(paths, joined, merge)
    assert numbers(whole.run(journal=whole.journal(joined, resume=True))) == numbers(whole.run())
    with pytest.raises(UsageError, match="some are missing"):
        join(paths[:-1], joined, merge)
    with pytest.raises(UsageError, match="expected a complete share"):
        join(paths[::-1], joined, merge)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (AblationSpec(filters=("0:2",), sweep=("0",)), "--filters"),
        (AblationSpec(filters=("0:1",)), "--sweep"),
        (AblationSpec(filters=("0:1",), sweep=("0",), mode=Mode.MEAN), "--mode"),
        (SPEC, "outputs"),
    ],
)
def test_the_state_of_another_ablation_is_refused(
    data: ImageData, tmp_path: Path, other: AblationSpec, named: str
) -> None:
    path, first = tmp_path / "tally.npz", Ablation(network(Kind.SOFTMAX), data, SPEC)
    first.run(journal=first.journal(path, resume=False))
    model = network(Kind.SOFTMAX)
    if named == "outputs":
        model = replace(model, choices="sigmoid")
    second = Ablation(model, data, other)
    with pytest.raises(UsageError, match=f"other {named}"):
        second.run(journal=second.journal(path, resume=True))


def test_a_damaged_state_is_refused(data: ImageData, tmp_path: Path) -> None:
    path, ablation = tmp_path / "tally.npz", Ablation(network(Kind.SOFTMAX), data, SPEC)
    path.write_bytes(b"PK no archive")
    with pytest.raises(CnnvizError, match="is damaged; start again"):
        ablation.run(journal=ablation.journal(path, resume=True))
