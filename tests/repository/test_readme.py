"""What the README and the changelog say is so."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from parts import slow_but

from cnnviz.cli.main import COMMANDS, run
from cnnviz.core.output.run_folder import version

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
# Those that need nothing but the repository; `img.jpg` and `img.tif` stand for the reader's own.
EXAMPLES = [
    line for line in BLOCKS.splitlines() if line.startswith("cnnviz ") and "img." not in line
]


@pytest.mark.parametrize("what", slow_but(["examples", "options", "schemas"], "schemas"))
def test_what_is_written_by_the_program_is_as_it_would_write_it(what):
    done = subprocess.run(
        [sys.executable, f"docs/write_{what}.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_other_example_on_the_sample_images_runs(tmp_path, monkeypatch):
    (tmp_path / "sample_images").symlink_to(ROOT / "sample_images")
    monkeypatch.chdir(tmp_path)
    shown = set(re.findall(r"```sh\n(cnnviz .*)\n```\n\n```text\n", README))
    others = [line for line in EXAMPLES if line not in shown]
    assert len(shown) == len(COMMANDS)
    assert others
    for line in others:
        assert run(shlex.split(line, comments=True)[1:]) == 0, line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_the_readme(name):
    assert re.search(rf"^\*\*{name}\*\*.*\n(.+\n)*\n```sh\ncnnviz {name} ", README, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_with_its_page(name):
    assert f"`cnnviz {name}`" in README
    assert f"(docs/{name}.md)" in README


def test_every_link_of_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).is_file(), target


def test_the_changelog_begins_with_the_version_that_is_installed():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == version()
