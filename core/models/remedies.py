"""What an error of a network's first run says, and what the user can do about it."""

import re


def essence(error: BaseException) -> str:
    """The informative line of an error; TorchScript puts it last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if "TorchScript" in lines[0] else lines[0]).strip()[:200]


_SIZE = "--size gives another size"
_REMEDIES = (
    (
        r"conv3d|5D|5-D|5-dim|\(expected 5, got 4\)",
        "cnnviz explains 2-D images, and this network takes an input of 5 dimensions (depth, time "
        "or views)",
    ),
    (
        r"conv1d|2D \(unbatched\) or 3D|LSTM|GRU|RNN|input must have [23] dimensions",
        "cnnviz explains 2-D images, and this network takes a sequence",
    ),
    (
        r"forward\(\) missing \d+ required",
        "its forward takes more than one image; --input NAME=FILE gives the others",
    ),
    (
        r"NVIDIA|CUDA|on the same device|cuda:\d",
        "its code names a device (.cuda(), device=); let it write .to(x.device)",
    ),
    (
        r"indices must be|too many indices|only integer tensors|string indices|is not iterable",
        "its forward takes something other than one tensor (N, C, H, W); write a factory that "
        "converts it",
    ),
    (
        r"expected input\[\d+, \d+, 3, \d+\]",
        "it takes (N, H, W, C); write a factory that permutes its input, x.permute(0, 2, 3, 1)",
    ),
    (
        r"mat1 and mat2|[Kk]ernel size|[Ss]izes? of tensor|is invalid for input of size|view size|"
        r"smaller than|too small|size mismatch|shape mismatch|must match|divisible|[Ii]nput size|"
        r"[Pp]ositional? |Input (image )?(height|width|size)|non-empty|patch|stack expects|"
        r"more than 1 value per channel|shapes? .*cannot be",
        _SIZE,
    ),
)
"""What an error of the first run says, and what to do about it. For any other, nothing is known."""
_FORMATS = re.compile(
    r"scalar type|same dtype|should be the same|not implemented for '|[Uu]nsupported dtype"
)


def remedy(error: BaseException, kind: str, others: str) -> str:
    """What to do about an error, to be appended to it; empty if nothing is known.

    `kind` is the number format of the run, and `others` names the inputs of `--input`.
    """
    if _FORMATS.search(str(error)):
        advice = "" if kind == "float32" else ", or --precision fp32"
        return f"; its code fixes a number format: let it convert to that of its input{advice}"
    fitting = (advice for pattern, advice in _REMEDIES if re.search(pattern, str(error)))
    advice = next(fitting, "")
    if others and advice in ("", _SIZE):
        advice = f"--input gives {others} for one image: check that its code expects that"
    return f"; {advice}" if advice else ""
