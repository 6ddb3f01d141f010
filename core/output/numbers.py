"""How numbers stand in summaries: rounded to what they are good for, the same everywhere."""

from typing import overload


@overload
def digits(value: float) -> float: ...
@overload
def digits(value: None) -> None: ...
def digits(value: float | None) -> float | None:
    """Seven significant digits, all that float32 scores carry; None stays None."""
    return None if value is None else float(f"{value:.7g}")


@overload
def fewer_digits(value: float) -> float: ...
@overload
def fewer_digits(value: None) -> None: ...
def fewer_digits(value: float | None) -> float | None:
    """Six significant digits, for fits and sums whose last ones hang on batches and order."""
    return None if value is None else float(f"{value:.6g}")
