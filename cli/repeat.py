"""The command of a finished run, to be repeated (`rerun`), or to end what shares began (`merge`).

A summary may come from a stranger. `rerun` is there to repeat its command line, which is parsed and
checked like one that is typed. `merge` runs no command line: the summary of a share has the options
as a record, whose types and ranges are checked. Both replace the options that say where results go
and what computes them. Code that a summary names runs, and URLs are read, only if the user allows
it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cnnviz.cli.options import ClusterOptions, OutputOptions
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import UsageError, one_line
from cnnviz.core.files import SUMMARY
from cnnviz.core.models.zoo import PREFIXES
from cnnviz.core.options import options_of
from cnnviz.core.output.summary import FinishedRun
from cnnviz.core.remote import is_url

NOT_REPEATED = ("merge", "rerun")


def repeated(
    run: FinishedRun,
    output: OutputOptions,
    *,
    allow_code: bool,
    shard: Shard | None,
    allow_urls: bool = False,
) -> Any:
    """Returns the record of a run's command line, with another output and shard."""
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
    _check_urls(place, record, allow_urls=allow_urls)
    return _placed(record, output, shard=shard, resume=False)


def request(record: Any) -> dict[str, Any]:
    """The options of a command as JSON data, without those in which its shares may differ."""
    if record is None:
        return {}
    plain: dict[str, Any] = _adapter(type(record)).dump_python(
        _placed(record, OutputOptions(), shard=None, resume=False), mode="json"
    )
    return plain


def requested(
    run: FinishedRun,
    content: Mapping[str, Any],
    output: OutputOptions,
    named: Collection[str],
    *,
    allow_urls: bool,
) -> Any:
    """Returns the record of what `request` made, to end the command with an output.

    `named` is the code that the user has named.
    """
    from cnnviz.cli.main import RECORDS  # which imports this module's users

    place = run.folder / SUMMARY
    try:
        record = _adapter(RECORDS[run.command]).validate_python(content)
        _check_ranges(record)
    except (KeyError, ValueError, UsageError) as error:
        text = one_line(error) if isinstance(error, UsageError) else "it is not a request"
        raise UsageError(f"'{place}' has options that no run writes: {text}") from error
    if unnamed := [code for code in _code(record) if code not in named]:
        options = " ".join(f"--code '{code}'" for code in unnamed)
        raise UsageError(f"the shares run code; if you trust it, name it: {options[:200]}")
    _check_urls(place, record, allow_urls=allow_urls)
    return _placed(record, output, shard=Shard(0, 1), resume=True)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _check_ranges(record: Any) -> None:
    """Raises a UsageError where a number is out of the range of its option."""
    for name, option in options_of(type(record)).items():
        option.check(getattr(record, name), option.name(name))
    for field in fields(record):
        if is_dataclass(value := getattr(record, field.name)):
            _check_ranges(value)


def _placed(record: Any, output: OutputOptions, *, shard: Shard | None, resume: bool) -> Any:
    """The record with another place for its results, computed in this process."""
    drawn = replace(
        output, format=record.output.format, dark=record.output.dark, width=record.output.width
    )
    changes = {"output": drawn, "shard": shard, "resume": resume, "cluster": ClusterOptions()}
    return replace(record, **{k: v for k, v in changes.items() if hasattr(record, k)})


def _check_urls(place: Path, record: Any, *, allow_urls: bool) -> None:
    """Refuses URLs that a summary names, unless the user allows them."""
    if not allow_urls and (urls := [text for text in _sources(record) if "://" in text]):
        raise UsageError(
            f"'{place}' names URLs that would be read: {', '.join(urls)[:200]}; use --allow-urls "
            "if you trust it"
        )


def _sources(record: Any) -> Iterator[str]:
    """The images and the networks of a command."""
    for name in ("images", "data", "compare"):
        value = getattr(record, name, None)
        yield from value if isinstance(value, list | tuple) else ()
    model = getattr(record, "model", None)
    yield from (str(getattr(model, name, None)) for name in ("model", "checkpoint"))


def _code(record: Any) -> Iterator[str]:
    """The factories and functions that a command's options name."""
    model = getattr(record, "model", None)
    compare = getattr(record, "compare", ())  # of filters: networks
    networks = [getattr(model, "model", ""), *(compare if isinstance(compare, tuple) else ())]
    for name in networks:  # a URL is a weight file's
        if ":" in name and not name.startswith(tuple(PREFIXES)) and not is_url(name):
            yield name
    pick = getattr(model, "pick", None)
    if pick is not None and ":" in pick:
        yield pick
