"""Pages outside docs/ on the site: mkdocs takes them from the repository's folder.

`../SECURITY.md` on a page of docs/, and `docs/ci.md` in a file of the repository's folder, lead to
the same pages on the site as in the repository.
"""

import re
from typing import Any

from mkdocs.structure.files import File, Files

ABOVE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages."""
    for name in ABOVE:
        path = config.config_file_path.replace("mkdocs.yml", name)
        files.append(File.generated(config, name, abs_src_path=path))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrites links between the two folders."""
    if page.file.src_uri in ABOVE:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, ABOVE))})", r"](\1", markdown)
