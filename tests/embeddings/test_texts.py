"""Texts as targets: cosines with a text, and a softmax over several, by transformers itself."""

import string
from pathlib import Path

import pytest
import torch
from networks import image_of
from torch.nn import functional

from cnnviz.core import load_model
from cnnviz.core.errors import UsageError
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
