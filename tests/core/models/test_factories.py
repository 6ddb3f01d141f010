import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnnviz.core.data.images import Preprocess
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.trace import trace
from cnnviz.core.models.layers import conv_layers
from cnnviz.core.models.load import load_model
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import prepare

FACTORIES = """
import torch
from torch import nn

HELPER = "neighbour"

def small(num_classes=3):
    from {neighbour} import channels
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, num_classes))

def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def number():
    return 7

def broken():
    return undefined_name

def nothing():
    class Net(nn.Module):
        def forward(self, x):
            return None
    return Net()

def maps():
    return nn.Conv2d(3, 4, 16, padding=(0, 1))

def lazy(num_classes=3):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(),
                         nn.LazyLinear(num_classes))
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    """A file of factories, with a neighbour that it imports from."""
    name = f"neighbour_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("channels = 5\n")
    (tmp_path / "nets.py").write_text(FACTORIES.format(neighbour=name))
    return str(tmp_path / "nets.py")


def test_factory_with_a_class_parameter_takes_the_checkpoints_count(
    nets: str, tmp_path: Path
) -> None:
    torch.save(load_model(f"{nets}:small", size=8).module.state_dict(), tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    state["3.weight"], state["3.bias"] = torch.randn(8, 5), torch.randn(8)
    save_file(state, tmp_path / "b.safetensors")
    model = load_model(f"{nets}:small", checkpoint=tmp_path / "b.safetensors", size=8, device="cpu")
    assert (model.name, model.classes, model.input_size) == ("nets.py:small", 8, (8, 8))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("number", "returned int, not an nn.Module"),
        ("broken", r"failed: NameError: name 'undefined_name' .*\(nets\.py, line \d+\)"),
        ("maps", r"returns shape \(1, 4, 1, 3\); a map, not a row of numbers .* give --output"),
        ("nothing", "returns NoneType; not a row of numbers for each image: give --output"),
    ],
)
def test_factory_that_makes_no_classifier_is_one_line(
    nets: str, factory: str, message: str
) -> None:
    with pytest.raises(CnnvizError, match=message) as error:
        load_model(f"{nets}:{factory}", size=16)
    assert "\n" not in str(error.value)


def test_lazy_layers_take_their_shapes_from_the_input_size(nets: str, tmp_path: Path) -> None:
    made = load_model(f"{nets}:lazy", size=8, device="cpu")
    state = made.module.state_dict()
    assert state["4.weight"].shape == (3, 4 * 6 * 6)
    assert not state["1.running_mean"].any()  # the blank image is no training
    state["4.weight"], state["4.bias"] = torch.randn(7, 4 * 6 * 6), torch.randn(7)
    torch.save(state, tmp_path / "a.pth")
    loaded = load_model(f"{nets}:lazy", checkpoint=tmp_path / "a.pth", size=8, device="cpu")
    assert loaded.classes == 7
    assert all(torch.equal(loaded.module.state_dict()[name], state[name]) for name in state)
    with pytest.raises(
        CnnvizError, match=r"does not fit the model nets\.py:lazy; of another shape"
    ):
        load_model(f"{nets}:lazy", checkpoint=tmp_path / "a.pth", size=10)


def test_wrong_input_size_points_to_the_option(nets: str) -> None:
    assert load_model(f"{nets}:flat", size=8, device="cpu").classes == 4
    with pytest.raises(CnnvizError, match=r"nets\.py:flat cannot run on an image of 3x9x9.*--size"):
        load_model(f"{nets}:flat", size=9)
    with pytest.raises(UsageError, match="vit_b_16 cannot be built for --size 100x100"):
        load_model("vit_b_16", weights="none", size=100)


def test_factory_file_with_a_mistake_in_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def make(:\n")
    with pytest.raises(UsageError, match=r"bad\.py' cannot be imported: SyntaxError"):
        load_model(f"{tmp_path / 'bad.py'}:make")


@pytest.mark.parametrize("here_first", [False, True])
def test_factory_by_module_name_and_search_path_is_left_as_it_was(
    here_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path.cwd())
    others = [place for place in sys.path if place != here]
    before = [here] * here_first + others
    monkeypatch.setattr(sys, "path", list(before))
    model = load_model("torchvision.models:squeezenet1_1", size=64, device="cpu")
    assert (model.name, model.classes) == ("torchvision.models:squeezenet1_1", 1000)
    assert sys.path == before


def test_grey_network_sees_the_luminance(nets: str) -> None:
    model = load_model(f"{nets}:grey", size=8, mean=[0.1], std=[0.3], device="cpu")
    assert "0" in trace(model.module).meta["layers"]
    assert conv_layers(model.module) == ["0"]  # the user's name
    prepared = prepare(model.module, (8, 8), device=torch.device("cpu"))
    boxes = np.array([[0, 0, 2, 2], [5, 3, 7, 5]])
    rows, _columns = IncrementalEngine(prepared).plan(boxes).axes
    assert max(int(spans.sizes.max()) for spans in rows.spans.values()) < 6  # no whole map
    pixels = torch.rand(2, 3, 8, 8)
    red, green, blue = pixels.unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue - 0.1) / 0.3
    expected = nn.Sequential.forward(model.module, grey[:, None])  # type: ignore[arg-type]
    assert torch.allclose(model.logits(model.preprocess.normalise(pixels)), expected, atol=1e-5)


def test_size_keeps_the_published_proportion_and_takes_all_of_the_image_elsewhere(
    nets: str,
) -> None:
    published = load_model("squeezenet1_1", weights="none", size=112, device="cpu").preprocess
    assert (published.resize, published.crop) == (128, (112, 112))
    own = load_model(f"{nets}:small", size=20, device="cpu").preprocess
    assert (own.resize, own.crop) == (20, (20, 20))
    both = load_model("squeezenet1_1", weights="none", size=(112, 224), device="cpu").preprocess
    assert (both.resize, both.crop) == ((128, 256), (112, 224))
    pair = load_model(f"{nets}:small", size=(20, 30), device="cpu").preprocess
    assert (pair.resize, pair.crop) == ((20, 30), (20, 30))
    plain = load_model(f"{nets}:small", device="cpu").preprocess
    assert plain == Preprocess(256, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_mean_and_std_are_the_users_when_given(nets: str) -> None:
    chosen = load_model(f"{nets}:small", size=8, mean=[0.5], std=[1, 2, 3], device="cpu").preprocess
    assert (chosen.mean, chosen.std) == ((0.5, 0.5, 0.5), (1, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size 0x0 is out of range; it takes a side"),
        ({"size": -3}, "--size -3x-3 is out of range; .* or HxW"),
        ({"size": (8, 0)}, "--size 8x0 is out of range"),
        ({"size": 10**12}, "--size 10{12}x10{12} is out of range; .* pixels in all"),
        ({"mean": [0.1, 0.2]}, "--mean and --std are given for 2 channels; nets.py:small takes 3"),
        ({"mean": [float("nan")]}, "--mean nan: it takes one number"),
        ({"std": [0.0]}, "--std 0: .*all above 0"),
        ({"std": [1, -1, 1]}, "--std 1,-1,1: .*all above 0"),
    ],
)
def test_preprocessing_out_of_range_is_refused(
    nets: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(f"{nets}:small", **options)  # type: ignore[arg-type]


def test_labels_are_the_users_when_given_and_must_be_as_many_as_classes(
    nets: str, tmp_path: Path
) -> None:
    (tmp_path / "l.txt").write_text("a\nb\nc\n")
    model = load_model(f"{nets}:small", size=8, labels=tmp_path / "l.txt")
    assert model.labels == ("a", "b", "c")
    with pytest.raises(UsageError, match=r"l\.txt' has 3 labels; bundled has 10 classes"):
        load_model(labels=tmp_path / "l.txt")
    with pytest.raises(UsageError, match=r"the labels file cannot be used: no file '.*gone'"):
        load_model(labels=tmp_path / "gone")


HABITS = """
import argparse, functools, sys
from torch import nn

class Needs(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(self.pool(x).flatten(1))

    @classmethod
    def make(cls):
        return cls(4)

class Other(Needs):
    def __init__(self, num_class=4):
        super().__init__(num_class)

class Wide(Needs):
    def __init__(self, width, num_classes=4):
        super().__init__(num_classes)

def anything(**kwargs):
    return Needs(kwargs.get("num_classes", 4))

def parses():
    argparse.ArgumentParser().parse_args()
    return Needs(4)

def leaves():
    sys.exit(0)

class Own(Exception):
    pass

def own():
    raise Own("mine")

def pair():
    return Needs(4), 1

four, made, short = functools.partial(Needs, 4), Needs(4), lambda: Needs(4)
"""


@pytest.fixture
def habits(tmp_path: Path) -> str:
    (tmp_path / "habits.py").write_text(HABITS)
    return str(tmp_path / "habits.py")


@pytest.mark.parametrize("factory", ["Needs", "Other", "anything"])
def test_factory_is_told_the_classes_however_it_takes_them(
    habits: str, factory: str, tmp_path: Path
) -> None:
    state = {"fc.weight": torch.randn(7, 3), "fc.bias": torch.randn(7)}
    torch.save(state, tmp_path / "a.pth")
    model = load_model(f"{habits}:{factory}", checkpoint=tmp_path / "a.pth", size=8, device="cpu")
    assert model.classes == 7


@pytest.mark.parametrize("factory", ["made", "four", "short", "parses"])
def test_instances_and_wrapped_factories_are_taken(
    habits: str, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cnnviz", "occlude", "--size", "8"])
    assert load_model(f"{habits}:{factory}", size=8, device="cpu").classes == 4
    assert sys.argv == ["cnnviz", "occlude", "--size", "8"]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Wide", "needs width; write one that takes nothing"),
        ("leaves", "failed: SystemExit: 0"),
        ("own", "failed: Own: mine"),
        ("pair", "returned tuple, not an nn.Module; write one"),
    ],
)
def test_what_a_factory_cannot_be_has_its_remedy(habits: str, factory: str, message: str) -> None:
    with pytest.raises(CnnvizError, match=message) as error:
        load_model(f"{habits}:{factory}", size=8, device="cpu")
    assert error.value.exit_status == 1


def test_a_file_of_a_package_may_import_relatively(tmp_path: Path) -> None:
    package = tmp_path / f"pack_{tmp_path.name}"
    package.mkdir()
    (package / "blocks.py").write_text("CLASSES = 4\n")
    (package / "net.py").write_text(
        "from torch import nn\nfrom .blocks import CLASSES\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))\n"
    )
    assert load_model(f"{package / 'net.py'}:make", size=8, device="cpu").classes == 4
