import gzip
import hashlib
import json
import os
import pickle
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from networks import model_of
from PIL import Image
from torch import nn
from torchvision import datasets as torchvision_datasets

from cnnviz.core.data.datasets import Batch, ImageData, batches, open_data
from cnnviz.core.data.images import Preprocess, read_image
from cnnviz.core.data.labels import match_labels, with_class_names
from cnnviz.core.data.rasters import Raster
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models import labels
from cnnviz.core.models.load import Model

PREPROCESS = Preprocess(8, (8, 8))


def picture(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path)
    return path


def fail(index: int, message: str) -> None:
    raise AssertionError(f"{index}: {message}")


def model(*labels: str, wnids: tuple[str, ...] | None = None) -> Model:
    return model_of(nn.Identity(), (8, 8), labels, preprocess=PREPROCESS, wnids=wnids)


def labelled(data: ImageData) -> list[tuple[str, str | None]]:
    names = data.classes or ()
    return [(Path(e.path).name, None if e.label is None else names[e.label]) for e in data.examples]


def test_folder_per_class_gives_sorted_classes_and_paths(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.png", "dog/deep/c.png"):
        picture(tmp_path / name)
    data = open_data([str(tmp_path)])
    assert data.classes == ("cat", "dog")
    assert labelled(data) == [("a.png", "cat"), ("b.png", "dog"), ("c.png", "dog")]


def test_numbered_folders_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        picture(tmp_path / str(number) / "a.png")
    assert open_data([str(tmp_path)]).classes == ("2", "9", "10")


def test_flat_folder_and_several_files_have_no_labels(tmp_path: Path) -> None:
    files = [str(picture(tmp_path / name)) for name in ("b.png", "a.png")]
    flat = open_data([str(tmp_path)])
    assert (flat.classes, labelled(flat)) == (None, [("a.png", None), ("b.png", None)])
    assert labelled(open_data(files)) == [("b.png", None), ("a.png", None)]


def test_pictures_beside_class_folders_have_no_label(tmp_path: Path) -> None:
    picture(tmp_path / "cat/a.png")
    picture(tmp_path / "stray.png")
    assert labelled(open_data([str(tmp_path)])) == [("a.png", "cat"), ("stray.png", None)]


def test_several_folders_are_a_class_each(tmp_path: Path) -> None:
    folders = [str(picture(tmp_path / name / "a.png").parent) for name in ("dog", "cat")]
    data = open_data(folders)
    assert data.classes == ("cat", "dog")
    assert labelled(data) == [("a.png", "cat"), ("a.png", "dog")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "path,label\nx/a.png,cat\nb.png,dog\nc.png,\n"),
        ("m.csv", "x/a.png,cat\nb.png,dog\n\nc.png\n"),
        ("m.csv", '\ufeffid,Label,Path\n7,cat,"x/a.png"\n8,dog,b.png\n9,,c.png\n'),
        (
            "m.jsonl",
            '{"path": "x/a.png", "label": "cat"}\n{"path": "b.png", "label": "dog"}\n\n'
            '{"path": "c.png", "label": null}\n',
        ),
    ],
)
def test_manifest_gives_paths_relative_to_itself(tmp_path: Path, name: str, text: str) -> None:
    for image in ("x/a.png", "b.png", "c.png"):
        picture(tmp_path / image)
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = open_data([str(tmp_path / name)])
    assert labelled(data) == [("a.png", "cat"), ("b.png", "dog"), ("c.png", None)]
    assert data.open(0).size == (8, 8)


COCO = {
    "images": [
        {"id": n, "file_name": name} for n, name in enumerate(("x/a.png", "b.png", "c.png"))
    ],
    "annotations": [{"image_id": i, "category_id": c} for i, c in ((0, 7), (0, 7), (1, 9))],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
}
LISTED = [{"file_name": "x/a.png", "label": "cat"}, {"file_name": "b.png", "label": "dog"},
          {"file_name": "c.png"}]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("m.csv", "image_id,label\nx/a.png,cat\nb.png,dog\nc.png,\n", ""),
        ("m.csv", "image,Level\nx/a.png,cat\nb.png,dog\nc.png,\n", "column 'Level' of"),
        ("m.csv", ",image,breed\n0,x/a.png,cat\n1,b.png,dog\n2,c.png,\n", "column 'breed' of"),
        ("m.tsv", "path\tlabel\nx/a.png\tcat\nb.png\tdog\nc.png\t\n", ""),
        ("m.txt", "x/a.png cat\nb.png  dog\nc.png\n", ""),
        ("m.txt", "x/a.png\tcat\nb.png\tdog\nc.png\n", ""),
        ("metadata.jsonl", "\n".join(map(json.dumps, LISTED)), ""),
        ("m.json", json.dumps(LISTED), ""),
        ("instances.json", json.dumps(COCO), ""),
    ],
)
def test_manifests_as_people_have_them(
    tmp_path: Path, name: str, text: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    for image in ("x/a.png", "b.png", "c.png"):
        picture(tmp_path / image)
    (tmp_path / name).write_text(text)
    data = open_data([str(tmp_path / name)])
    assert labelled(data) == [("a.png", "cat"), ("b.png", "dog"), ("c.png", None)]
    assert note in caplog.text
    assert bool(note) == bool(caplog.text)


@pytest.mark.parametrize(
    ("rows", "labels", "note"),
    [
        (["a.png,1,0.0", "b.png,0,1"], ["Cat", "dog"], "its 2 columns of 0 and 1: Cat, dog"),
        (["a.png,1,1", "b.png,0,0"], ["Cat|dog", "|"], "its 2 columns of 0 and 1: Cat, dog"),
        (["a.png,1,3", "b.png,0,4"], [None, None], "used as the label (Cat, dog): call one label"),
        (["a.png,1", "b.png,0,4"], [None, None], "used as the label (Cat, dog): call one label"),
    ],
)
def test_a_column_per_class_is_read_or_said_not_to_be(
    tmp_path: Path,
    rows: list[str],
    labels: list[str | None],
    note: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "m.csv").write_text("\n".join(["image,Cat,dog", *rows]))
    assert [label for _, label in labelled(open_data([str(tmp_path / "m.csv")]))] == labels
    assert note in caplog.text


def test_keys_that_are_not_labels_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.jsonl").write_text('{"file_name": "a.png", "species": 1, "id": 2}')
    assert open_data([str(tmp_path / "m.jsonl")]).classes is None
    assert "the key is called label, not id, species" in caplog.text


def test_files_named_with_folders_are_said_to_have_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "b.png")
    assert open_data([str(tmp_path / "cat"), str(tmp_path / "b.png")]).classes is None
    assert "so the folders are not classes" in caplog.text


def test_a_folder_of_arrays_counts_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.pt").write_bytes(b"")
    assert len(open_data([str(tmp_path)])) == 1
    assert "1 .pt" in caplog.text


def test_manifest_with_class_indices_keeps_their_order(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path":"a","label":10}\n{"path":"b","label":9}\n')
    assert open_data([str(tmp_path / "m.jsonl")]).classes == ("9", "10")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"path,label\n", "lists no image"),
        ("m.csv", b"path,label\n,cat\n", "has no path in its row 1"),
        ("m.csv", b'a.png,"cat\n', "is not CSV"),
        ("m.csv", b"\xff\xfe\x00", "is not UTF-8"),
        ("m.jsonl", b'{"path": "a"\n', "line 1: "),
        ("m.jsonl", b'{"path": "a"}\n{"label": 3}\n', "line 2: expected an object with path"),
        ("m.jsonl", b"[1]\n", "line 1: expected an object"),
        ("m.csv", b"id,breed\n000bec,boxer\n", r"names no image in its first rows \(id,breed\)"),
        ("m.txt", b"some words about the data\n", "names no image in its first rows"),
        ("m.json", b"{", "is not JSON"),
        ("m.json", b'{"a.png": 3}', "is neither a list of objects with path and label nor COCO"),
        ("m.json", b'[{"label": 3}]', "entry 1: expected an object with path"),
        ("m.json", b'{"images": [{"id": []}], "annotations": 3}', "is neither a list"),
    ],
)
def test_malformed_manifest_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        open_data([str(tmp_path / name)])
    assert "\n" not in str(error.value)


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file or folder '.*gone'"):
        open_data([str(tmp_path / "gone")])
    with pytest.raises(UsageError, match="holds no image"):
        open_data([str(tmp_path)])
    with pytest.raises(UsageError, match=r"the manifest cannot be used: no file '.*gone\.csv'"):
        open_data([str(tmp_path / "gone.csv")])
    with pytest.raises(
        CnnvizError, match=r"no complete cifar10 in .*cifar-10-batches-py is missing"
    ):
        open_data([f"cifar10:{tmp_path}"])
    with pytest.raises(CnnvizError, match=r"no complete mnist in .*MNIST/raw is missing"):
        open_data([f"mnist:{tmp_path}"])
    with pytest.raises(UsageError, match="--limit 0: it takes a whole number from 1"):
        open_data([str(tmp_path)], limit=0)


def unequal(tmp_path: Path) -> str:
    for name, count in (("a", 20), ("b", 3), ("c", 9)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number:02d}.png").touch()
    return str(tmp_path)


@pytest.mark.parametrize(("limit", "counts"), [(9, [3, 3, 3]), (15, [6, 3, 6]), (32, [20, 3, 9])])
def test_limit_is_class_balanced_as_far_as_the_classes_reach(
    tmp_path: Path, limit: int, counts: list[int]
) -> None:
    data = open_data([unequal(tmp_path)], limit=limit)
    found = Counter(example.label for example in data.examples)
    assert [found[label] for label in range(3)] == counts
    assert (len(data), data.total) == (limit, 32)
    assert [e.row for e in data.examples] == sorted(e.row for e in data.examples)


def test_limit_draws_by_seed_and_every_picture_can_be_drawn(tmp_path: Path) -> None:
    source = [unequal(tmp_path)]
    first = open_data(source, limit=4, seed=0).examples
    assert first == open_data(source, limit=4, seed=0).examples
    drawn = {e.row for seed in range(60) for e in open_data(source, limit=4, seed=seed).examples}
    assert drawn == set(range(32))


def test_fingerprint_changes_with_names_labels_contents_and_sample(tmp_path: Path) -> None:
    first = picture(tmp_path / "cat/a.png")
    picture(tmp_path / "dog/b.png")
    prints = [open_data([str(tmp_path)]).fingerprint]
    assert open_data([str(tmp_path)]).fingerprint == prints[0]
    prints.append(open_data([str(tmp_path)], limit=1).fingerprint)
    os.utime(first, ns=(0, 0))
    prints.append(open_data([str(tmp_path)]).fingerprint)
    first.rename(tmp_path / "dog/a.png")
    prints.append(open_data([str(tmp_path)]).fingerprint)
    assert len(set(prints)) == 4


def levels(tmp_path: Path, count: int) -> ImageData:
    for number in range(count):
        picture(tmp_path / f"{number % 2}" / f"{number:03d}.png", level=number)
    return open_data([str(tmp_path)])


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("count", "size"), [(1, 4), (8, 4), (11, 4)])
def test_batches_equal_reading_one_by_one(
    tmp_path: Path, count: int, size: int, workers: int
) -> None:
    data = levels(tmp_path, count)
    got = list(batches(data, PREPROCESS, size, on_error=fail, workers=workers))
    assert [len(b.indices) for b in got] == [size] * (count // size) + [count % size] * bool(
        count % size
    )
    for batch in got:
        for index, image, label in zip(batch.indices, batch.images, batch.labels, strict=True):
            example = data.examples[int(index)]
            expected = PREPROCESS.normalise(read_image(example.path, PREPROCESS).pixels)
            assert torch.equal(image, expected)
            assert int(label) == example.label
    assert torch.cat([b.indices for b in got]).tolist() == list(range(count))


def test_batches_start_in_the_middle(tmp_path: Path) -> None:
    data = levels(tmp_path, 7)
    got = list(batches(data, PREPROCESS, 3, on_error=fail, start=2))
    assert torch.cat([b.indices for b in got]).tolist() == [2, 3, 4, 5, 6]
    assert list(batches(data, PREPROCESS, 3, on_error=fail, start=7)) == []


def test_unreadable_pictures_are_reported_in_order_and_left_out(tmp_path: Path) -> None:
    data = levels(tmp_path, 6)
    for index in (1, 4):
        Path(data.examples[index].path).write_text("no picture")
    told: list[tuple[int, str]] = []
    got = list(batches(data, PREPROCESS, 3, on_error=lambda i, text: told.append((i, text))))
    assert torch.cat([b.indices for b in got]).tolist() == [0, 2, 3, 5]
    assert [index for index, _ in told] == [1, 4]
    assert all("is not an image" in text for _, text in told)


def test_unlabelled_pictures_have_label_minus_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (batch,) = batches(open_data([str(tmp_path)]), PREPROCESS, 3, on_error=fail)
    assert batch.labels.tolist() == [-1]


def test_decoding_runs_ahead_by_a_bounded_number_and_threads_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = levels(tmp_path, 60)
    opened: list[int] = []
    original = ImageData.open

    def counting(self: ImageData, index: int, preprocess: Preprocess) -> Image.Image | Raster:
        opened.append(index)
        return original(self, index, preprocess)

    monkeypatch.setattr(ImageData, "open", counting)
    stream = batches(data, PREPROCESS, 4, on_error=fail, workers=2)
    first: Batch = next(stream)
    assert first.indices.tolist() == [0, 1, 2, 3]
    stream.close()  # type: ignore[attr-defined]
    assert max(opened) <= 4 + 4 + 2
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_folders_match_by_name_whatever_the_case_and_underscores(tmp_path: Path) -> None:
    for name in ("Tiger_Cat", "LADYBUG"):
        picture(tmp_path / name / "a.png")
    net = model("ladybug, ladybird beetle", "x", "tiger cat")
    data = open_data([str(tmp_path)])
    assert data.classes == ("LADYBUG", "Tiger_Cat")
    assert match_labels(data, net) == (0, 2)


def test_folders_match_by_index_and_by_wnid(tmp_path: Path) -> None:
    for name in ("2", "n01440764"):
        picture(tmp_path / name / "a.png")
    net = model("goldfish", "tench", "shark", wnids=("n01443537", "n01440764", "n01484850"))
    assert match_labels(open_data([str(tmp_path)]), net) == (2, 1)


def test_unmatched_classes_are_an_error_that_lists_both_sides(tmp_path: Path) -> None:
    for name in ("cat", "unicorn", "3"):
        picture(tmp_path / name / "a.png")
    message = (
        r"2 of the 3 classes of .* are not classes of net: 3, unicorn; the model's are cat, dog, "
    )
    with pytest.raises(UsageError, match=message):
        match_labels(open_data([str(tmp_path)]), model("cat", "dog", "horse"))


def test_folder_named_like_two_classes_is_unmatched(tmp_path: Path) -> None:
    picture(tmp_path / "crane" / "a.png")
    with pytest.raises(UsageError, match="are not classes of net: crane"):
        match_labels(open_data([str(tmp_path)]), model("crane", "crane"))


def test_part_of_a_word_is_no_match(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png")
    with pytest.raises(UsageError, match="are not classes of net: cat"):
        match_labels(open_data([str(tmp_path)]), model("catamaran", "dog"))


def test_wnids_without_a_list_of_wnids_point_to_labels(tmp_path: Path) -> None:
    picture(tmp_path / "n01440764" / "a.png")
    with pytest.raises(UsageError, match=r"n01440764; .*from index to \[wnid, name\]"):
        match_labels(open_data([str(tmp_path)]), model("tench", "dog"))


def imagenet() -> Model:
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    return model(*weights.meta["categories"])


def test_wnid_folders_are_torchvisions_classes_where_timm_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("n02123045", "n01440764", "n03126707"):  # tabby, tench, crane (of two)
        picture(tmp_path / name / "a.png")
    data = open_data([str(tmp_path)])
    labels.imagenet_wnids.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'cnnviz\[timm\]', or from a --labels JSON"):
        match_labels(data, imagenet())
    monkeypatch.undo()
    labels.imagenet_wnids.cache_clear()
    pytest.importorskip("timm")
    assert match_labels(data, imagenet()) == (0, 281, 517)
    assert imagenet().class_index("n02123045") == 281
    assert with_class_names(data, imagenet()).classes == ("tench", "tabby", "crane")
    with pytest.raises(UsageError, match="are not classes of net: n01440764"):
        match_labels(data, model(*map(str, range(1000))))  # as many, but not ImageNet's


def test_indices_become_the_models_names_if_they_are_the_models_classes(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        picture(tmp_path / name / "a.png")
    data = open_data([str(tmp_path)])
    assert with_class_names(data, model("cat", "dog", "cat", "cow")).classes == (
        "cat (0)",
        "dog",
        "cat (2)",
    )
    digits_of_another = model(*(f"class {number}" for number in range(10)))
    assert with_class_names(data, digits_of_another).classes == ("0", "1", "2")
    assert with_class_names(data, model("0", "1", "2")).classes == ("0", "1", "2")
    part = data.share(Shard(1, 3))
    assert with_class_names(part, model("cat", "dog", "cow")).part == part.part


def test_all_thousand_wnids_are_imagenet_in_sorted_order(tmp_path: Path) -> None:
    names = [f"n{number:08d}" for number in range(1000)]
    rows = "\n".join(f"{name}.png,{name}" for name in reversed(names))
    (tmp_path / "m.csv").write_text(rows)
    net = model(*(f"class {number}" for number in range(1000)))
    assert match_labels(open_data([str(tmp_path / "m.csv")]), net) == tuple(range(1000))


def test_unlabelled_data_match_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert match_labels(open_data([str(tmp_path)]), model("cat", "dog")) == ()


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_mnist_is_read_from_its_own_files(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    for split, digits in (("t10k", [3, 1, 4, 1, 5]), ("train", [9, 2, 6, 5, 3])):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.array(digits)))
    data = open_data([f"{name}:{tmp_path}"])
    assert [e.label for e in data.examples] == [3, 1, 4, 1, 5]
    assert data.examples[1].path == f"{name}:test/00001"
    assert np.array_equal(np.asarray(data.open(1)), np.repeat(pixels[1][..., None], 3, 2))
    assert [e.label for e in open_data([f"{name}:{tmp_path}:train"]).examples] == [9, 2, 6, 5, 3]
    sample = open_data([f"{name}:{tmp_path}"], limit=2)
    assert np.array_equal(np.asarray(sample.open(1))[..., 0], pixels[sample.examples[1].row])
    assert match_labels(data, model(*map(str, range(10)))) == tuple(range(10))


@pytest.mark.parametrize(
    ("pictures", "labels", "words"),
    [
        ((5, 28, 28), [1, 2, 3], "has 5 test pictures of mnist and 3 labels"),
        ((2, 28, 28), [1, 2, 3], "has 2 test pictures of mnist and 3 labels"),
        ((3, 28, 28), [1, 200, 3], "has the label 200; mnist has the classes 0 to 9"),
        ((3, 28, 28), [[1], [2], [3]], "no complete mnist in"),
        ((9, 28), [1, 2, 3], "no complete mnist in"),
    ],
)
def test_parts_of_mnist_that_disagree(
    tmp_path: Path, pictures: tuple[int, ...], labels: list[Any], words: str
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("t10k", "train"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(np.zeros(pictures)))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.array(labels)))
    with pytest.raises(CnnvizError, match=words):
        open_data([f"mnist:{tmp_path}"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_cut_files_of_mnist(tmp_path: Path, part: str, share: float) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("t10k", "train"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(np.zeros((9, 28, 28))))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.zeros(9)))
    path = raw / f"t10k-{part}-ubyte"
    path.write_bytes(path.read_bytes()[: int(share * len(path.read_bytes()))])
    with pytest.raises(CnnvizError, match="no complete mnist in"):
        open_data([f"mnist:{tmp_path}"])


class Harmful:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_cifar10_with_code_in_it_is_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = ["batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Harmful(tmp_path / "mark")))
    with pytest.raises(CnnvizError, match="no complete cifar10 in"):
        open_data([f"cifar10:{tmp_path}"])
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2]}, "has 4 test pictures of cifar"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 12]}, "has the label 12"),
        ({"data": np.zeros((2, 99), np.uint8), "labels": [1, 2]}, "no complete cifar10"),
        ({"labels": [1, 2]}, "no complete cifar10"),
        ([1, 2], "no complete cifar10"),
    ],
)
def test_parts_of_cifar10_that_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: object, words: str
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    kind = torchvision_datasets.CIFAR10
    monkeypatch.setattr(kind, "_check_integrity", lambda _self: True)
    monkeypatch.setattr(kind, "test_list", [["test_batch", None]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    with pytest.raises(CnnvizError, match=words):
        open_data([f"cifar10:{tmp_path}"])


def test_a_million_lines_are_listed_without_asking_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{i}.png\n" for i in range(20_000)))
    asked: list[Path] = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **o: asked.append(self) or stat(self, **o))
    data = open_data([str(tmp_path / "list.csv")], limit=10)
    assert (len(data), data.total) == (10, 20_000)
    assert len(asked) < 40


def test_named_classes_need_the_models_names_unless_it_has_none(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("t10k", "train"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28))))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.zeros(1)))
    data = open_data([f"fashionmnist:{tmp_path}"])
    assert match_labels(data, model(*map(str, range(10)))) == tuple(range(10))
    with pytest.raises(
        UsageError, match=r"10 of the 10 classes of .* are not classes of net: T-shirt"
    ):
        match_labels(data, model(*"abcdefghij"))


def test_cifar10_is_read_from_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    names = ["airplane", "automobile", "bird", "cat"]
    batch = {"data": pixels.reshape(4, -1), "labels": [3, 0, 2, 1]}
    sums = {}
    for file, content in (("test_batch", batch), ("batches.meta", {"label_names": names})):
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()  # noqa: S324
    kind = torchvision_datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(kind, "meta", meta)
    data = open_data([f"cifar10:{tmp_path}"])
    assert data.classes == tuple(names)
    assert [e.label for e in data.examples] == [3, 0, 2, 1]
    assert np.array_equal(np.asarray(data.open(2)), pixels[2].transpose(1, 2, 0))
    assert match_labels(data, model("dog", "bird", "cat", "airplane", "automobile")) == (3, 4, 1, 2)


def test_real_mnist_reads_a_known_digit(tmp_path: Path, assets: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (assets / "mnist").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    data = open_data([f"mnist:{tmp_path}"], limit=50)
    assert (data.total, len(data)) == (10_000, 50)
    assert set(Counter(e.label for e in data.examples).values()) == {5}
    assert open_data([f"mnist:{tmp_path}"]).examples[0].label == 7


def test_numbered_folders_say_that_imagefolder_orders_them_as_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ImageFolder's order is the truth for a network trained with it; --labels gives it."""
    for number in range(12):
        picture(tmp_path / str(number) / "a.png")
    data = open_data([str(tmp_path)])
    assert match_labels(data, model(*map(str, range(12)))) == tuple(range(12))
    assert "ImageFolder orders them as text" in caplog.text
    caplog.clear()
    order = torchvision_datasets.ImageFolder(str(tmp_path)).classes
    matched = match_labels(data, model(*order))
    assert [order[index] for index in matched] == list(data.classes or ())
    assert caplog.text == ""


def test_numbered_folders_of_one_order_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        picture(tmp_path / str(number) / "a.png")
    match_labels(open_data([str(tmp_path)]), model(*map(str, range(10))))
    assert caplog.text == ""


def test_all_suffixes_pillow_reads_are_read_and_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat/a.PNG", "cat/b.ppm", "__MACOSX/cat/a.png", "cat/._a.png"):
        picture(tmp_path / name)
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "dog" / "c.jfif", "JPEG")
    for name in ("cat/x.heif2", "cat/y.heif2", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    data = open_data([str(tmp_path)])
    assert labelled(data) == [("a.PNG", "cat"), ("b.ppm", "cat"), ("c.jfif", "dog")]
    assert "not images by their suffix: 2 .heif2" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "filename,class\nx/a.png,cat\nb.png,dog\n",
        "Image Path;Category\r\nx/a.png;cat\r\nb.png;dog\r\n",
        "x/a.png\tcat\n  \nb.png\tdog\n",
        'x\\a.png, "cat"\n b.png , dog\n',
        ",file,label\n0,x/a.png,cat\n1,b.png,dog\n",
    ],
)
def test_csv_as_people_write_it(tmp_path: Path, text: str) -> None:
    for image in ("x/a.png", "b.png"):
        picture(tmp_path / image)
    (tmp_path / "m.csv").write_bytes(text.encode("utf-8-sig"))
    data = open_data([str(tmp_path / "m.csv")])
    assert labelled(data) == [("a.png", "cat"), ("b.png", "dog")]
    assert all(data.open(index).size == (8, 8) for index in range(2))


def test_an_unknown_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("foto,race\na.png,cat\n")
    with pytest.raises(
        UsageError, match="does not name an image: foto,race; call a header's columns"
    ):
        open_data([str(tmp_path / "m.csv")])
