"""What the README and the changelog say is so."""

import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from parts import slow_but

from cnnviz.cli.main import COMMANDS
from cnnviz.core.extras import version

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def commands(page: str) -> list[str]:
    """The lines of the page's `sh` blocks that begin with `cnnviz`."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    lines = [line.rpartition("&& ")[2] for line in blocks.splitlines()]
    return [line for line in lines if line.startswith("cnnviz ")]


def shown(page: str) -> list[str]:
    """All command lines on a page, in blocks, indented or between backticks."""
    page = page.replace("\\\n", " ")
    indented = re.findall(r"^    +(?:- run: |- )?(cnnviz .*)$", page, re.MULTILINE)
    return [*commands(page), *indented, *re.findall(r"`(cnnviz [^`]*)`", page)]


@pytest.mark.parametrize("what", slow_but(["options", "schemas"], "schemas"))
def test_what_is_written_by_the_program_is_as_it_would_write_it(what):
    # `.ci/run` checks the examples, with what the README installs.
    done = subprocess.run(
        [sys.executable, f"docs/write_{what}.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def not_installed_by_the_readme() -> list[str]:
    """The top-level modules of optional packages that the README's first command leaves out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = project["optional-dependencies"]
    line = next(line for line in README.splitlines() if line.startswith("pip install"))
    named = re.search(r"\.\[([\w,]+)\]", line)
    chosen = named[1].split(",") if named else []
    waiting = project["dependencies"] + [item for extra in chosen for item in optional[extra]]
    installed = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name.lower() not in installed:
            installed.add(requirement.name.lower())
            with suppress(PackageNotFoundError):
                waiting += requires(requirement.name) or ()
    extras = [
        item for name in optional if name not in ("test", "dev", "docs") for item in optional[name]
    ]
    left_out = {Requirement(item).name.lower() for item in extras} - installed
    return [
        module
        for module, names in packages_distributions().items()
        if left_out & {name.lower() for name in names}
    ]


RUN = """
import json, shlex, sys
from glob import glob
from importlib.machinery import PathFinder
lines, missing = json.load(sys.stdin)
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] in missing else super().find_spec(name, *rest)
sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
from cnnviz.cli.main import run
for line in lines:
    words = shlex.split(line, comments=True)[1:]
    if run([name for word in words for name in sorted(glob(word)) or [word]]):
        sys.exit(line)
"""


@pytest.mark.slow
def test_commands_run_in_their_order_in_a_clean_folder_with_what_the_readme_installs(tmp_path):
    (tmp_path / "sample_images").symlink_to(ROOT / "sample_images")
    # `img.jpg` and `img.tif` are the reader's.
    lines = [line for line in commands(README) if "img." not in line]
    lines += commands(PAGES["examples"])
    for name, page in PAGES.items():
        outside = shown(page) if name != "examples" else ()
        named = [line for line in outside if "sample_images" in line]
        lines += [line if "--out" in line else f"{line} --out pages/{name}" for line in named]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path, input=json.dumps([lines, not_installed_by_the_readme()]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def options(command: Callable[..., None]) -> set[str]:
    """The options of a command, as they are typed."""
    found = {"--help", "-h"}
    for parameter in inspect.signature(command).parameters.values():
        _, info = get_args(parameter.annotation)
        declared = [name for name in (info.default, *(info.param_decls or ())) if name is not ...]
        named = declared or [f"--{parameter.name.replace('_', '-')}"]
        found |= {name for text in named for name in str(text).split("/")}
    return found


@pytest.mark.parametrize("name", ["README", *PAGES])
def test_commands_and_options_on_a_page_exist(name):
    for line in shown(README if name == "README" else PAGES[name]):
        words = shlex.split(line.partition(" | ")[0].replace("…", ""), comments=True)
        if len(words) > 1 and words[1] in COMMANDS:
            typed = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
            assert typed <= options(COMMANDS[words[1]]) | {"-"}, line
        elif len(words) > 1 and words[1].isalpha() and not words[1].isupper():
            pytest.fail(f"no such command: {line}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_with_its_output(name):
    output = "" if name == "doctor" else "\n```text\n"  # differs on every machine
    assert re.search(rf"```sh\n(cnnviz .*\n)*cnnviz {name}.*\n```\n{output}", PAGES["examples"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_with_its_page(name):
    assert f"`cnnviz {name}`" in README
    assert f"(docs/{name}.md)" in README


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_every_link_leads_to_a_file(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_site_has_every_page():
    named = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    assert named == {f"{name}.md" for name in PAGES} | {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    }


def test_pictures_are_there_and_small():
    done = subprocess.run(
        [sys.executable, "docs/write_pictures.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "img").glob("*-*.webp")}
    assert {name for name, size in sizes.items() if size >= 80_000} == set()
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "img").iterdir()) < 2_000_000
    pages = "".join(PAGES.values())
    assert [name for name in sizes if f"(img/{name})" not in pages] == []


def test_the_changelog_begins_with_the_version_that_is_installed():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == version()
