import json
from pathlib import Path

import jsonschema
import pytest
import torch

from cnnviz.cli.main import run
from cnnviz.core.models import bundled
from cnnviz.core.models.zoo.published import torchvision_names

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "schemas" / "models.schema.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache with one file of weights in it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "alexnet-owt-7be5be79.pth").touch()
    return folder


def test_json_lists_every_model_the_card_and_what_is_on_disk(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert run(["models", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    results = content["results"]
    assert results["bundled"] == bundled.read_card().text
    assert [entry["model"] for entry in results["torchvision"]] == torchvision_names()
    weights = [weight for entry in results["torchvision"] for weight in entry["weights"]]
    assert [w["file"] for w in weights if w["on_disk"]] == ["alexnet-owt-7be5be79.pth"]
    assert sum(w["default"] for w in weights) == len(torchvision_names())
    assert results["cache"] == str(cache) == f"{torch.hub.get_dir()}/checkpoints"


def test_table_shows_the_models_asked_for_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["models", "alexnet"]) == 0
    shown = capsys.readouterr().out
    assert "alexnet-owt-7be5be79.pth" in shown
    assert "IMAGENET1K_V1 *" in shown
    assert "resnet" not in shown
    assert "bundled" not in shown


def test_table_shows_the_bundled_models_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "bundled"]) == 0
    shown = capsys.readouterr().out
    accuracy = bundled.read_card().text["accuracy"]
    assert f"{accuracy['top1_percent']} % of 1,000 lossless" in shown
    for name, percent in accuracy["per_class_percent"].items():
        assert any(name in line and str(percent) in line for line in shown.splitlines())


def test_text_that_is_in_no_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "resnext19"]) == 2
    told = capsys.readouterr().err
    assert "no model has 'resnext19' in its name; the nearest are resnet18" in told
