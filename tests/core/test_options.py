"""Specs are the options: every field declared once, checked wherever a spec is made."""

import dataclasses
from importlib import import_module
from types import ModuleType
from typing import Any, get_args

import pytest

from cnnviz.cli.main import COMMANDS
from cnnviz.core.errors import UsageError
from cnnviz.core.options import Spec, images_at_a_time, numbers, options_of

SPECS: list[tuple[str, type[Spec]]] = []
PLACES = (
    *("occlusion", "gradients", "embeddings"),
    *("filters.activations", "filters.patches", "filters.ablation"),
)
for place in PLACES:
    module: ModuleType = import_module(f"cnnviz.{place}.options")
    SPECS += [(place, v) for k, v in vars(module).items() if k.endswith("Spec") and v is not Spec]
COMMAND_OF = {
    "OcclusionSpec": "occlude",
    "PanelSpec": "render",
    "SaliencySpec": "saliency",
    "EmbeddingSpec": "tsne",
    "ActivationsSpec": "activations",
    "MaxPatchesSpec": "max-patches",
    "AblationSpec": "ablate",
}


def given(command: str) -> dict[str, Any]:
    """Typer's options of a command, by the field they are for."""
    hints = COMMANDS[command].__annotations__
    return {name: get_args(hint)[1] for name, hint in hints.items()}


@pytest.mark.parametrize(("place", "spec"), SPECS)
def test_every_field_is_an_option_of_its_command_with_the_same_words(place, spec):
    options = options_of(spec)
    assert list(options) == [field.name for field in dataclasses.fields(spec)]
    on_command_line = given(COMMAND_OF[spec.__name__])
    for name, option in options.items():
        assert on_command_line[name].help == option.help


@pytest.mark.parametrize(("place", "spec"), SPECS)
def test_numbers_out_of_range_are_refused_in_code_too(place, spec):
    bounded = {name: o for name, o in options_of(spec).items() if o.least is not None}
    for name, option in bounded.items():
        spec(**{name: int(option.least)})
        with pytest.raises(UsageError, match=f"{option.name(name)} .* is out of range; it takes a"):
            spec(**{name: int(option.least) - 1})


def test_text_becomes_numbers_or_is_named():
    assert numbers("0.5,1,2e-1", "--mean") == (0.5, 1.0, 0.2)
    with pytest.raises(UsageError, match=r"'0\.5,x' is not a list of numbers; --std takes numbers"):
        numbers("0.5,x", "--std")
    assert images_at_a_time("auto", "--batch-size") is None
    assert images_at_a_time("12", "--batch-size") == 12
    with pytest.raises(UsageError, match="invalid batch size '-1'; --batch-size takes auto or"):
        images_at_a_time("-1", "--batch-size")
