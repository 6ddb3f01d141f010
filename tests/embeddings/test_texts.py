"""Texts as targets: cosines with a text, and a softmax over several, by transformers itself."""

import itertools
import json
import string
from pathlib import Path

import pytest
import torch
from networks import image_of
from torch import Tensor
from torch.nn import functional

from cnnviz.core import load_model
from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Kind
from cnnviz.core.models.load import Model
from cnnviz.embeddings.likeness import describe
from cnnviz.occlusion import OcclusionSpec, occlude

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, and a tokenizer of letters."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>"])}
    vocabulary |= {token: index for index, token in enumerate(letters, start=2)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small["num_attention_heads"] = 2
    text = {**small, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**small, "image_size": SIDE, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    network = transformers.CLIPModel(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, 0, 0.2)
    network.logit_scale.data.fill_(2.0)
    network.save_pretrained(path)
    return path


def made(folder: Path) -> Model:
    return load_model(f"hf:{folder}", features=True, size=SIDE, mean=(0,), std=(1,))


@pytest.mark.parametrize("texts", [("a red car",), ("a red car", "grass", "two")])
def test_numbers_are_those_of_transformers(folder: Path, texts: tuple[str, ...]) -> None:
    pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    asked = OcclusionSpec(masks=((8, 8),), stride=8, fill="black")
    result = occlude(describe(made(folder), texts), image_of(pixels), asked)
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        list(texts), padding=True, return_tensors="pt"
    )
    boxes = result.targets[0].grid.boxes_P4.tolist()
    covered = torch.stack([pixels.clone() for _ in boxes])
    for image, (y0, x0, y1, x1) in zip(covered, boxes, strict=True):
        image[:, y0:y1, x0:x1] = 0
    with torch.no_grad():
        answer = network(pixel_values=covered, **tokens)
    expected = functional.cosine_similarity(
        answer.image_embeds[:, None], answer.text_embeds[None], dim=2
    )[:, 0]
    if len(texts) > 1:
        expected = answer.logits_per_image.softmax(1)[:, result.targets[0].index]
    assert result.targets[0].class_ in texts
    assert result.measured.head.has_classes == (len(texts) > 1)
    assert result.targets[0].probabilities_P.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert float(expected.max() - expected.min()) > 1e-3


def test_an_image_tower_alone_is_an_embedding(folder: Path) -> None:
    model = made(folder)
    assert model.classes == 0
    assert any("one for texts (--text)" in note for note in model.notes)


def test_texts_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"bundled has no text tower; CLIP and its like"):
        describe(load_model(), ["dog"])
    with pytest.raises(UsageError, match=r"texts that are not empty, each once"):
        describe(made(folder), ["dog", "dog"])
    with pytest.raises(UsageError, match=r"texts that are not empty, each once"):
        describe(made(folder), [" "])
    with pytest.raises(UsageError, match=r"--text 'abcdefghij.*' has \d+ tokens; at most 16"):
        describe(made(folder), ["abcdefghijklmnopqrstuvwxyz"])


def covered(pixels: Tensor) -> tuple[Tensor, OcclusionSpec]:
    """An image occluded at each of 16 positions, and the spec of these."""
    images = []
    for y, x in itertools.product(range(0, SIDE, 8), repeat=2):
        images.append(pixels.clone())
        images[-1][:, y : y + 8, x : x + 8] = 0
    return torch.stack(images), OcclusionSpec(masks=((8, 8),), stride=8, fill="black")


def test_siglip_gives_each_text_a_probability_of_its_own(folder: Path, tmp_path: Path) -> None:
    """By a sigmoid with its own scale and bias."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small["num_attention_heads"] = 2
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"projection_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**small, "image_size": SIDE, "patch_size": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    network = transformers.SiglipModel(config).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, 0, 0.3)
    network.logit_scale.data.fill_(1.5)
    network.logit_bias.data.fill_(-0.7)
    network.save_pretrained(tmp_path)
    texts = ["a red car", "grass"]
    pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images, asked = covered(pixels)
    result = occlude(describe(made(tmp_path), texts), image_of(pixels), asked)
    padding = {"padding": "max_length", "max_length": 16, "return_tensors": "pt"}
    ids = tokenizer(texts, **padding)["input_ids"]
    with torch.no_grad():
        answer = network(pixel_values=images, input_ids=ids).logits_per_image
    panel = result.targets[0]
    expected = answer.sigmoid()[:, panel.index].tolist()
    assert panel.probabilities_P.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3
    assert result.measured.head.kind is Kind.SIGMOID


@pytest.mark.parametrize("bias", [None, -0.5])
def test_open_clip_by_a_loop(tmp_path: Path, bias: float | None) -> None:
    """From a checkpoint; with a bias it is a sigmoid of each text."""
    open_clip = pytest.importorskip("open_clip")
    name = f"tiny-{bias is None}"
    vision = {"image_size": SIDE, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config: dict[str, object] = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    if bias is not None:
        config["init_logit_bias"] = bias
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    network = open_clip.create_model(name, load_weights=False).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}},
               tmp_path / "w.pt")  # fmt: skip
    model = load_model(f"open_clip:{name}", checkpoint=tmp_path / "w.pt", features=True)
    assert model.input_size == (SIDE, SIDE)
    assert any("one for texts (--text)" in note for note in model.notes)
    texts = ["a red car", "grass"]
    pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images, asked = covered(pixels)
    result = occlude(describe(model, texts), image_of(pixels), asked)
    with torch.no_grad():
        image = network.encode_image(model.preprocess.normalise(images), normalize=True)
        of_text = network.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
        logits = network.logit_scale.exp() * image @ of_text.T
    shares = logits.softmax(1) if bias is None else (logits + bias).sigmoid()
    panel = result.targets[0]
    expected = shares[:, panel.index].tolist()
    assert panel.probabilities_P.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-4
    with pytest.raises(UsageError, match=r"--text 'word word.*' has 22 tokens; at most 16"):
        describe(model, ["word " * 20])


def test_names_of_open_clip_are_checked() -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(UsageError, match=r"no model 'open_clip:ViT-B-3'; the nearest .*ViT-B-32"):
        load_model("open_clip:ViT-B-3")
    with pytest.raises(
        UsageError, match=r"no model 'open_clip:ViT-B-32\.open'; .*ViT-B-32\.openai"
    ):
        load_model("open_clip:ViT-B-32.open")
