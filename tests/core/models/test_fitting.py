from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.files.checkpoints import StateDict, read_state_dicts
from cnnviz.core.models.files.kinds import Kind
from cnnviz.core.models.fitting import Fitting, choose, fit, head_classes
from cnnviz.core.models.load import load_model

FILE = Path("ck")


def network(classes: int = 4) -> nn.Sequential:
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5, classes)).eval()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def only(tensors: dict[str, Tensor], module: nn.Module | None = None) -> Fitting:
    return choose([StateDict("", tensors)], module or network(), None, FILE)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.model.", "learner.best_net."]
)
def test_prefix_that_makes_the_names_fit_is_stripped_whatever_it_is_called(prefix: str) -> None:
    state = dict(network().state_dict())
    found = only(under(prefix, state))
    assert same(found.tensors, state)
    assert found.notes == ()


def test_prefix_that_belongs_to_the_network_or_to_some_names_alone_stays() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

    own = Own()
    assert only(dict(own.state_dict()), own).tensors.keys() == own.state_dict().keys()
    state = dict(network().state_dict())
    mixed = {("module." if "0" in name else "") + name: value for name, value in state.items()}
    with pytest.raises(CnnvizError, match=r"missing: 0\.weight, 0\.bias; unexpected: module"):
        fit(network(), only(mixed).tensors, FILE, "net")
    assert only({}).tensors == {}


def test_what_belongs_to_the_loss_or_a_metric_is_left_aside_with_a_note() -> None:
    state = dict(network().state_dict())
    beside = {"criterion.weight": torch.ones(4), "val_acc.tp": torch.ones(4)}
    for prefix in ("model.", ""):
        found = only(under(prefix, state) | beside)
        assert same(found.tensors, state)
        (note,) = found.notes
        assert (
            note == "'ck': skipped weights that are not the network's: criterion (1), val_acc (1)"
        )


def test_names_beside_the_networks_own_that_are_no_loss_are_a_misfit() -> None:
    state = dict(network().state_dict()) | {"6.weight": torch.ones(4)}
    with pytest.raises(CnnvizError, match=r"unexpected: 6\.weight"):
        fit(network(), only(state).tensors, FILE, "net")


RAW, AVERAGED = {n: {k: v * n for k, v in network().state_dict().items()} for n in (1, 2)}.values()


@pytest.mark.parametrize(
    ("found", "raw", "averaged"),
    [
        (
            [StateDict("state_dict", RAW), StateDict("state_dict_ema", AVERAGED)],
            "state_dict",
            "state_dict_ema",
        ),
        ([StateDict("", under("model.", RAW) | under("ema.", AVERAGED))], "model", "ema"),
        (
            [StateDict("model", RAW), StateDict("model_ema", under("module.", AVERAGED))],
            "model",
            "model_ema.module",
        ),
    ],
)
def test_averaged_weights_are_taken_before_raw_ones_with_a_note_and_state_chooses(
    found: list[StateDict], raw: str, averaged: str
) -> None:
    taken = choose(found, network(), None, FILE)
    assert same(taken.tensors, AVERAGED)
    assert taken.notes[0] == (
        f"'ck' holds several sets of weights: took {averaged} (--state takes {raw})"
    )
    assert same(choose(found, network(), raw, FILE).tensors, RAW)
    assert same(choose(found, network(), averaged, FILE).tensors, AVERAGED)
    with pytest.raises(UsageError, match=rf"no state 'x' in 'ck'; --state takes .*{raw}"):
        choose(found, network(), "x", FILE)


def test_averaged_weights_alone_are_found() -> None:
    found = choose([StateDict("state_dict_ema", AVERAGED)], network(), None, FILE)
    assert same(found.tensors, AVERAGED)
    assert found.notes == ()


def test_optimizer_state_is_no_rival() -> None:
    moments = {"exp_avg": torch.ones(5, 3, 3, 3), "step": torch.tensor(3.0)}
    found = choose(
        [StateDict("model", RAW), StateDict("optimizer.0", moments)], network(), None, FILE
    )
    assert same(found.tensors, RAW)
    assert found.notes == ()


def test_published_densenet_names_are_translated() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.ModuleDict({"norm1": nn.BatchNorm2d(3)})
            self.block = nn.ModuleDict({"denselayer1": layer})
            self.classifier = nn.Linear(3, 2)

    state = dict(Dense().state_dict())
    given = {name.replace("norm1", "norm.1"): value for name, value in state.items()}
    assert same(only(given, Dense()).tensors, state)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_names_that_torch_itself_translates_fit() -> None:
    torch.manual_seed(0)
    old = weight_norm(nn.Linear(3, 2))  # type: ignore[no-untyped-call]
    new = parametrizations.weight_norm(nn.Linear(3, 2))
    state = {name: value.detach() for name, value in old.state_dict().items()}
    assert "weight_g" in state
    fit(new, only(state, new).tensors, FILE, "net")
    x = torch.randn(5, 3)
    torch.testing.assert_close(new(x), old(x))


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        (lambda v: v.to(torch.int8), "int8"),
        (lambda v: v > 0, "bool"),
        (lambda v: v.to(torch.complex64), "complex64"),
        (lambda v: v.to_sparse(), "float32, sparse_coo"),
        (lambda v: v.to("meta"), "without values"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_the_networks_are_refused(odd, named: str) -> None:  # type: ignore[no-untyped-def]
    state = dict(network().state_dict())
    state["0.weight"] = odd(state["0.weight"])
    with pytest.raises(
        CnnvizError, match=rf"'ck' holds 0\.weight as {named}, which no network here takes"
    ):
        fit(network(), state, FILE, "net")


def test_fit_copies_every_tensor_and_forgives_missing_counters(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, target = network(), network()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    fit(target, state, tmp_path, "net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(source(x), target(x))


def test_misfit_lists_missing_unexpected_and_both_shapes(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    state["extra"] = state.pop("0.weight")
    state["5.weight"] = torch.zeros(7, 6)
    message = (
        r"'ck' does not fit the model net; missing: 0\.weight; unexpected: extra; "
        r"of another shape: 5\.weight \(file \(7, 6\), model \(4, 5\)\)"
    )
    with pytest.raises(CnnvizError, match=message):
        fit(network(), state, FILE, "net")


def test_misfit_shows_the_first_three_names_and_counts_the_rest() -> None:
    with pytest.raises(CnnvizError, match=r"missing: 0\.weight, 0\.bias, 1\.weight and 5 more"):
        fit(network(), {}, FILE, "net")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = dict(network().state_dict())
    state["5.bias"] = torch.tensor([0, value, 0, 0])
    with pytest.raises(CnnvizError, match=r"'ck' holds NaN or infinity in 5\.bias"):
        fit(network(), state, FILE, "net")


def test_class_count_is_read_off_the_head() -> None:
    assert head_classes(network(4), network(9).state_dict()) == 9
    assert head_classes(network(4), network(4).state_dict()) is None
    other = dict(network(9).state_dict()) | {"0.weight": torch.zeros(5, 3, 5, 5)}
    assert head_classes(network(4), other) is None
    scalar = dict(network(4).state_dict()) | {"5.bias": torch.tensor(0.0)}
    assert head_classes(network(4), scalar) is None


def test_a_strange_tensor_beside_the_networks_is_refused_too() -> None:
    state = dict(network().state_dict()) | {"mask": torch.eye(3).to_sparse()}
    with pytest.raises(CnnvizError, match="'ck' holds mask as float32, sparse_coo, which no"):
        fit(network(), state, FILE, "net")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_state_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--state ema names weights in a file; give it with"):
        load_model(state="ema")
    path = tmp_path / "net.pt"
    torch.jit.trace(network(), torch.zeros(1, 3, 8, 8)).save(str(path))  # type: ignore[no-untyped-call]
    with pytest.raises(UsageError, match=r"--state ema: '.*net\.pt' holds one network with its"):
        load_model(checkpoint=path, state="ema")


@pytest.mark.parametrize("raw", ["semantic", "schema", "remap"])
def test_only_whole_words_name_averaged_weights(raw: str) -> None:
    state = network().state_dict()
    for named in (("a", raw), (raw, "a")):
        (first, second) = (StateDict(name, dict(state)) for name in named)
        (note,) = choose([first, second], network(), None, FILE).notes
        assert f"took {named[0]} " in note


def ready(state: dict[str, Tensor], module: nn.Module) -> nn.Module:
    """The network with the weights of a file that holds this state."""
    found = only(state, module)
    fit(module, found.tensors, FILE, "net")
    return module


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]


REPARAMETRISED: dict[str, Callable[[nn.Module], object]] = {
    "pruning": pruned,
    "weight norm": parametrizations.weight_norm,
    "weight norm, old": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, old": spectral_norm,
}


def several() -> nn.Sequential:
    layers = (nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 5, 2), nn.ConvTranspose2d(5, 4, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("kind", REPARAMETRISED)
@pytest.mark.parametrize("layer", range(3))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_weight_saved_as_several_tensors_is_multiplied_out(kind: str, layer: int) -> None:
    torch.manual_seed(layer)
    source, target = several(), several().eval()
    REPARAMETRISED[kind](source[layer])
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for _ in range(20):  # power iterations of spectral norm
            source(x)
        right = source.eval()(x)
        state = {name: value.detach() for name, value in source.state_dict().items()}
        torch.testing.assert_close(ready(state, target)(x), right, rtol=1e-4, atol=1e-5)
    (note,) = only(state, several()).notes
    assert f"multiplied out ({kind.partition(',')[0]}): {layer}.weight from {layer}." in note


def test_a_weight_saved_as_several_tensors_that_do_not_fit_is_refused_with_the_remedy() -> None:
    state = dict(network().state_dict())
    state |= {"0.weight_orig": state.pop("0.weight"), "0.weight_mask": torch.zeros(7)}
    with pytest.raises(CnnvizError, match=r"missing: 0\.weight; .*_mask; .*prune\.remove or"):
        ready(state, network())


def lora(state: dict[str, Tensor], added: float) -> dict[str, Tensor]:
    made = {f"base_model.model.{k}": v for k, v in state.items()}
    for name in ("weight", "bias"):
        made[f"base_model.model.5.base_layer.{name}"] = made.pop(f"base_model.model.5.{name}")
    made["base_model.model.5.lora_A.default.weight"] = torch.ones(2, 5)
    made["base_model.model.5.lora_B.default.weight"] = torch.full((4, 2), added)
    return made


def test_lora_that_adds_nothing_is_skipped_and_any_other_is_refused() -> None:
    state = dict(network().state_dict())
    assert same(dict(ready(lora(state, 0.0), network()).state_dict()), state)
    assert "skipped LoRA adapters that add nothing" in only(lora(state, 0.0)).notes[0]
    with pytest.raises(CnnvizError, match=r"call merge_and_unload\(\) \(LoRA, DoRA\)"):
        ready(lora(state, 0.1), network())


@pytest.mark.parametrize("added", [0.0, 0.1])
def test_dora_is_refused_with_the_remedy_even_where_only_its_length_was_trained(
    added: float,
) -> None:
    state = lora(dict(network().state_dict()), added)
    state["base_model.model.5.lora_magnitude_vector.default.weight"] = torch.ones(4)
    with pytest.raises(CnnvizError, match=r"does not fit.*call merge_and_unload\(\) .*DoRA"):
        ready(state, network())


def test_counters_and_computed_buffers_are_skipped_with_a_note() -> None:
    state = dict(network().state_dict())
    more = {"total_ops": torch.zeros(1), "0.total_ops": torch.zeros(1), "n_averaged": torch.ones(1)}
    found = only(state | more | {"3.attn_mask": torch.zeros(2, 2)})
    assert same(found.tensors, state)
    assert found.notes == (
        "'ck': skipped counters and computed buffers: total_ops (2), n_averaged (1), attn_mask (1)",
    )


@pytest.mark.parametrize("counter", [torch.tensor(1.5), torch.tensor(torch.nan), torch.ones(3)])
def test_batch_norms_counter_may_be_anything(counter: Tensor) -> None:
    state = dict(network().state_dict())
    state["1.num_batches_tracked"] = counter
    assert torch.equal(ready(state, network())[0].weight, state["0.weight"])  # type: ignore[index]


class Buffers(nn.Module):
    """Tensors that are not weights: a mask, indices, an attention mask, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("keep", torch.tensor([True, False, True]))
        self.register_buffer("index", torch.tensor([0, 2, 1]))
        self.register_buffer("causal", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("gate", torch.ones(2))
        self.register_buffer("wave", torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("keep", torch.tensor([1, 0, 1], dtype=torch.uint8), True),
        ("keep", torch.tensor([1.0, 0.0, 1.0]), True),
        ("keep", torch.tensor([1.0, 0.5, 1.0]), False),
        ("index", torch.tensor([0, 2, 1], dtype=torch.int32), True),
        ("index", torch.tensor([0.0, 2.0, 1.0]), True),
        ("index", torch.tensor([0.0, 2.5, 1.0]), False),
        ("index", torch.tensor([0.0, torch.nan, 1.0]), False),
        ("index", torch.tensor([0, 2, 1], dtype=torch.complex64), False),
        ("causal", torch.tensor([0.0, -torch.inf], dtype=torch.float64), True),
        ("gate", torch.tensor([True, False]), True),
        ("gate", torch.tensor([1, 0], dtype=torch.int8), False),
        ("wave", torch.tensor([1j, 2j]), True),
        ("wave", torch.tensor([1.0, 2.0]), False),
    ],
)
def test_entries_that_are_no_weights_are_taken_if_nothing_is_lost(
    name: str, value: Tensor, fits: bool
) -> None:
    state = dict(Buffers().state_dict()) | {name: value}
    if not fits:
        with pytest.raises(CnnvizError, match=rf"'ck' holds {name} as"):
            ready(state, Buffers())
        return
    taken = ready(state, Buffers()).state_dict()[name]
    assert torch.equal(taken, value.to(taken.dtype))


def test_statistics_of_a_norm_must_be_finite() -> None:
    state = dict(network().state_dict())
    state["1.running_var"] = torch.full((5,), torch.inf)
    with pytest.raises(CnnvizError, match=r"'ck' holds NaN or infinity in 1\.running_var"):
        ready(state, network())


class Tied(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.head = self.body[5]


@pytest.mark.parametrize("dropped", ["head.", "body.5."])
def test_a_tensor_is_found_under_any_of_its_names(dropped: str) -> None:
    state = {k: v + 1 for k, v in Tied().state_dict().items() if not k.startswith(dropped)}
    net = ready(state, Tied())
    kept = "body.5.weight" if dropped == "head." else "head.weight"
    assert torch.equal(net.head.weight, state[kept])  # type: ignore[union-attr, arg-type]
    separate = Tied()
    separate.head = nn.Linear(5, 4)
    with pytest.raises(CnnvizError, match=f"missing: {dropped}"):
        ready(state, separate)


def test_names_that_safetensors_metadata_gives_are_read(tmp_path: Path) -> None:
    net = Tied()
    save_model(net, str(tmp_path / "m.safetensors"))
    (read,) = read_state_dicts(tmp_path / "m.safetensors", Kind.SAFETENSORS)
    assert same(read.tensors, dict(net.state_dict()))


def test_a_backbone_of_torchvision_is_features_or_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None).eval()
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "b.pth")
    given = {"checkpoint": tmp_path / "b.pth", "size": 32}
    with pytest.raises(
        CnnvizError, match=r"missing: fc\.weight, fc\.bias \(it holds no classifier"
    ):
        load_model("resnet18", **given)  # type: ignore[arg-type]
    features = load_model("resnet18", features=True, **given)  # type: ignore[arg-type]
    assert (features.classes, features.labels) == (0, ())
    values = load_model("resnet18", head="none", **given)  # type: ignore[arg-type]
    assert values.classes == 512
    whole.fc = nn.Identity()  # type: ignore[assignment]
    image = torch.rand(2, 3, 32, 32)
    for model in (features, values):
        torch.testing.assert_close(model.logits(image), whole(image))


def test_a_missing_classifier_is_refused_or_removed_and_nothing_else_is() -> None:
    state = {k: v for k, v in network().state_dict().items() if not k.startswith("5.")}
    with pytest.raises(CnnvizError, match=r"missing: 5\.weight, 5\.bias \(it holds no classifier"):
        fit(network(), state, FILE, "net")
    net = network()
    sentence = fit(net, state, FILE, "net", features=True)
    assert sentence == "'ck' holds no classifier for net (missing: 5.weight, 5.bias)"
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    for lost in ("0.", "1.", "5.weight"):  # in the middle, or half of the last layer
        rest = {k: v for k, v in network().state_dict().items() if not k.startswith(lost)}
        with pytest.raises(CnnvizError, match=rf"missing: {lost}"):
            fit(network(), rest, FILE, "net", features=True)
