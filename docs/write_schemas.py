"""Writes the JSON schema of each command's summary, from the records of its results.

python docs/write_schemas.py            rewrites docs/schemas/*.schema.json
python docs/write_schemas.py --check    exits with 1 where one is not as it would be written
"""

import argparse
import json
import sys
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from cnnviz.audit import results as audits
from cnnviz.cli.doctor import Report
from cnnviz.cli.main import COMMANDS
from cnnviz.cli.models import Listing
from cnnviz.core.output.record import fields_of
from cnnviz.core.output.summary import Summary
from cnnviz.diff import results as differences
from cnnviz.embeddings import results as embeddings
from cnnviz.filters.ablation import results as ablation
from cnnviz.filters.activations import results as activations
from cnnviz.filters.kernels import results as kernels
from cnnviz.filters.layers import results as layers
from cnnviz.filters.patches import results as patches
from cnnviz.gradients import results as gradients
from cnnviz.occlusion import boxes
from cnnviz.occlusion import results as occlusion
from cnnviz.reasons import results as reasons
from cnnviz.trust import results as trust

SCHEMAS = Path(__file__).parent / "schemas"
WITHOUT_MODEL = {"render", "diff"}
OTHERS = {"merge", "rerun", "report"}  # without a summary or with that of the command they run


SUMMARIES: dict[str, Any] = {
    "occlude": list[occlusion.OcclusionResult],
    "render": list[occlusion.OcclusionResult],
    "saliency": list[gradients.SaliencyResult],
    "trust": list[trust.TrustResult],
    "reasons": list[reasons.ReasonsResult],
    "activations": list[activations.Activations],
    "detect": list[boxes.Detected],
    "filters": kernels.FilterResults,
    "layers": layers.Inventory,
    "max-patches": patches.MaxPatches,
    "audit": audits.AuditResult | None,  # null of a shard
    "ablate": ablation.AblationResult,
    "tsne": embeddings.Embedding | None,  # null of a shard, for which merge makes them
    "diff": differences.Results,
}
WITHOUT_RUN = {"models": Listing, "doctor": Report}
"""Commands that print JSON and write no summary."""
PER_IMAGE = {"occlude", "saliency", "trust", "reasons", "activations", "detect"}
FOLDER = {
    "type": "string",
    "description": "where its files are, relative to the folder of this summary",
}


class Generator(GenerateJsonSchema):
    """Makes closed objects without titles from records and from TypedDicts."""

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        """Closes the object."""
        return super().typed_dict_schema(schema) | {"additionalProperties": False}

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """Gives a record the keys that `to_json` writes, in their order."""
        made = super().dataclass_schema(schema)
        described, keys, required = made["properties"], {}, []
        for field in fields_of(schema["cls"]):
            if not field.has("json"):
                continue
            key = described.get(field.key)
            if key is None:  # a derived property
                key = self.generate_inner(TypeAdapter(field.hint).core_schema)
            key.pop("default", None)
            if not field.optional:
                required.append(field.key)
            elif not field.nullable:
                key = without_null(key)
            keys[field.key] = key
        made |= {"properties": keys, "required": required, "additionalProperties": False}
        if not required:
            del made["required"]
        if "description" in made:  # the rest is about fields that JSON lacks
            made["description"] = made["description"].split("\n\n")[0]
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Omits titles, which repeat the keys."""
        return False


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Removes the null of a value whose key is absent instead."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema | {"anyOf": kinds} if kinds else schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**kinds[0], **rest}


def without_titles(value: Any) -> Any:
    """Removes the titles of types, which are names in our code."""
    if isinstance(value, list):
        return [without_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k != "title" or not isinstance(v, str)}
    return {key: without_titles(item) for key, item in kept.items()}


def summary_of(command: str) -> Any:
    """The type of a command's summary: the common record with the type of its results."""
    if command in WITHOUT_RUN:
        return WITHOUT_RUN[command]
    name, results = f"Summary of {command}", ("results", SUMMARIES[command])
    return make_dataclass(name, [results], bases=(Summary,), frozen=True, kw_only=True)


def schema_of(command: str) -> dict[str, Any]:
    """The schema of a command's summary."""
    adapter: TypeAdapter[Any] = TypeAdapter(summary_of(command))
    schema = without_titles(adapter.json_schema(schema_generator=Generator))
    keys = schema["properties"]
    keys["schema"] = {"const": f"cnnviz.{command}/1"}
    keys["command"] = {"const": command}
    for key in ("model", "device", "precision"):
        if key in keys:
            model, nothing = keys[key]["anyOf"]
            keys[key] = nothing if command in WITHOUT_MODEL else model
    if command in PER_IMAGE:
        entry = schema["$defs"][keys["results"]["items"]["$ref"].rpartition("/")[2]]
        entry["properties"]["folder"] = FOLDER
        entry["required"].append("folder")
    schema.pop("description", None)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": f"summary.json of cnnviz {command}",
        **schema,
    }


def main() -> int:
    """Rewrites or checks all schemas; returns the exit status."""
    parser = argparse.ArgumentParser(description="write the JSON schemas of all summaries")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    commands = (*SUMMARIES, *WITHOUT_RUN)
    if {*commands, *OTHERS} != COMMANDS.keys():
        print(f"no schema for {COMMANDS.keys() - {*commands}}", file=sys.stderr)
        return 1
    status = 0
    for command in commands:
        path = SCHEMAS / f"{command}.schema.json"
        schema = schema_of(command)
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == schema:
            continue
        if check:
            print(f"{path.name}: differs; run docs/write_schemas.py", file=sys.stderr)
            status = 1
        else:
            text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
