"""Which cases of a parametrised test run each time, and which in the slow part alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *names: Any) -> list[Any]:
    """All cases are slow but those named, by themselves or by their first value."""
    made, unknown = [], list(names)
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        name = next((name for name in names if name in (case, values[0])), None)
        if name is None:
            made.append(pytest.param(*values, marks=pytest.mark.slow))
        else:
            made.append(pytest.param(*values))
            unknown = [other for other in unknown if other != name]
    assert not unknown, f"no such cases: {unknown}"
    return made
