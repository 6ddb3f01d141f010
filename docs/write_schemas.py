"""Writes the JSON schema of each command's summary, from the types that its report is made of.

python docs/write_schemas.py            rewrites docs/schemas/*.schema.json
python docs/write_schemas.py --check    exits with 1 where one is not as it would be written
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from cnnviz.audit import report as audits
from cnnviz.cli.main import COMMANDS
from cnnviz.cli.models import Listing
from cnnviz.core.output.entries import Placed, Summary
from cnnviz.diff import report as differences
from cnnviz.embeddings import results as embeddings
from cnnviz.filters.ablation import entries as ablation
from cnnviz.filters.activations import report as activations
from cnnviz.filters.kernels import report as kernels
from cnnviz.filters.layers import report as layers
from cnnviz.filters.patches import report as patches
from cnnviz.gradients import report as gradients
from cnnviz.occlusion import report as occlusion
from cnnviz.trust import report as trust

SCHEMAS = Path(__file__).parent / "schemas"
WITHOUT_MODEL = {"render", "diff"}
OTHERS = {"merge", "rerun", "report"}  # whose summaries are of the commands that they run, or none


class Occluded(occlusion.Entry, Placed):
    """One picture."""


class Traced(gradients.Entry, Placed):
    """One picture."""


class Observed(activations.Entry, Placed):
    """One picture."""


class Trusted(trust.Entry, Placed):
    """One picture."""


SUMMARIES: dict[str, Any] = {
    "occlude": Summary[list[Occluded]],
    "render": Summary[list[occlusion.Entry]],
    "saliency": Summary[list[Traced]],
    "trust": Summary[list[Trusted]],
    "activations": Summary[list[Observed]],
    "filters": Summary[kernels.Results],
    "layers": Summary[layers.Results],
    "max-patches": Summary[patches.Results],
    "audit": Summary[audits.Results | None],  # null of a share
    "ablate": Summary[ablation.Results],
    "tsne": Summary[embeddings.Embedding | None],  # null of a share, for which merge makes them
    "diff": Summary[differences.Results],
    "models": Listing,
}


class Generator(GenerateJsonSchema):
    """Objects have the keys that are named and no others; no titles, which repeat the keys."""

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        """Closed."""
        return super().typed_dict_schema(schema) | {"additionalProperties": False}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Never."""
        return False


def without_titles(value: Any) -> Any:
    """The same without the titles of types, which are names in our code."""
    if isinstance(value, list):
        return [without_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    own = {k: v for k, v in value.items() if k != "title" or not isinstance(v, str)}
    return {key: without_titles(item) for key, item in own.items()}


def schema_of(command: str) -> dict[str, Any]:
    """The schema of a command's summary."""
    found = TypeAdapter(SUMMARIES[command]).json_schema(schema_generator=Generator)
    found = without_titles(found)
    keys = found["properties"]
    keys["schema"] = {"const": f"cnnviz.{command}/1"}
    keys["command"] = {"const": command}
    for key in ("model", "device", "precision"):
        if key in keys:
            model, nothing = keys[key]["anyOf"]
            keys[key] = nothing if command in WITHOUT_MODEL else model
    found.pop("description", None)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": f"summary.json of cnnviz {command}",
        **found,
    }


def main() -> int:
    """Rewrites or checks all schemas; returns the exit status."""
    parser = argparse.ArgumentParser(description="JSON schemas of all summaries")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    if SUMMARIES.keys() | OTHERS != COMMANDS.keys():
        print(f"no schema for {COMMANDS.keys() - SUMMARIES.keys()}", file=sys.stderr)
        return 1
    status = 0
    for command in SUMMARIES:
        path = SCHEMAS / f"{command}.schema.json"
        wanted = schema_of(command)
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == wanted:
            continue
        if check:
            print(f"{path.name}: differs; run docs/write_schemas.py", file=sys.stderr)
            status = 1
        else:
            text = json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
