"""The command of a finished run, to be run again with other outputs (`merge`, `rerun`).

A summary may come from a stranger. Its command line is parsed and checked like one that is typed,
the options that say where results go are replaced in the parsed record, and code that it names
runs only with `--allow-code`, and URLs are read only with `--allow-urls`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cnnviz.cli.options import OutputOptions
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import UsageError
from cnnviz.core.files import SUMMARY
from cnnviz.core.output.summary import FinishedRun

LIBRARIES = ("timm:", "hf:")
"""Prefixes of networks whose code is a library's."""
NOT_REPEATED = ("merge", "rerun")


def repeated(
    run: FinishedRun,
    output: OutputOptions,
    *,
    allow_code: bool,
    shard: Shard | None,
    resume: bool = False,
    allow_urls: bool = False,
) -> Any:
    """Returns the record of a run's command, with another output and shard."""
    from cnnviz.cli.main import parse  # which imports this module's users

    place, argv = run.folder / SUMMARY, run.summary.argv
    if run.command in NOT_REPEATED or argv[:1] != (run.command,):
        raise UsageError(f"'{place}' is not of a command that can be repeated")
    record = parse(argv)
    if not isinstance(getattr(record, "output", None), OutputOptions):
        raise UsageError(f"'{place}' is not of a command that can be repeated")
    code = list(_code(record))
    if code and not allow_code:
        raise UsageError(
            f"'{place}' names code that would run: {', '.join(code)[:200]}; use --allow-code if "
            "you trust it"
        )
    if not allow_urls and (urls := [text for text in _sources(record) if "://" in text]):
        raise UsageError(
            f"'{place}' names URLs that would be read: {', '.join(urls)[:200]}; use --allow-urls "
            "if you trust it"
        )
    drawn = replace(
        output, format=record.output.format, dark=record.output.dark, width=record.output.width
    )
    changes = {"output": drawn, "shard": shard, "resume": resume}
    return replace(record, **{k: v for k, v in changes.items() if hasattr(record, k)})


def _sources(record: Any) -> Iterator[str]:
    """The images and the network of a command."""
    for name in ("images", "data"):
        yield from getattr(record, name, None) or ()
    model = getattr(record, "model", None)
    yield from (str(getattr(model, name, None)) for name in ("model", "checkpoint"))


def _code(record: Any) -> Iterator[str]:
    """The factories and functions that a command's options name."""
    model = getattr(record, "model", None)
    compare = getattr(record, "compare", ())  # of filters: networks
    networks = [getattr(model, "model", ""), *(compare if isinstance(compare, tuple) else ())]
    yield from (name for name in networks if ":" in name and not name.startswith(LIBRARIES))
    pick = getattr(model, "pick", None)
    if pick is not None and ":" in pick:
        yield f"--output {pick}"
