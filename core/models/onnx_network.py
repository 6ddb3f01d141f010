"""ONNX files: networks that onnxruntime runs, as black boxes.

What comes out can be read; layers and gradients cannot. A file's own operators are never loaded.

Shapes: N images, C channels, H W rows and columns.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, one_line
from cnnviz.core.extras import required

COLOURS = (1, 3)
NUMBERS = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
}


class OnnxNetwork(nn.Module):
    """Images (N, C, H, W) to what an ONNX file makes of them, on the CPU.

    One output comes as a tensor, several by name.

    Attributes:
        size: the (rows, columns) it insists on; None where any will do.
        batch: the number of images it insists on; None where any will do.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            UsageError: onnxruntime is not installed.
            CnnvizError: it is damaged, or takes no pictures.
        """
        super().__init__()
        runtime = required("onnxruntime", f"'{path}'", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its warnings about graphs are for their authors
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except USER_CODE_ERRORS as error:
            raise CnnvizError(
                f"the ONNX file '{path}' cannot be read: {one_line(error)}"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in NUMBERS:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise CnnvizError(
                f"the ONNX file '{path}' takes {found or 'nothing'}; it must take one batch of "
                "pictures, of floating-point numbers (N, C, H, W)"
            )
        self._input, self._dtype = inputs[0].name, NUMBERS[inputs[0].type]
        sides = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self.channels_last = sides[3] in COLOURS and sides[1] not in COLOURS
        if self.channels_last:
            sides = [sides[0], sides[3], sides[1], sides[2]]
        self.batch, self.channels, rows, columns = sides
        self.size = (rows, columns) if rows and columns else None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __deepcopy__(self, _memo: object) -> "OnnxNetwork":
        return self  # a session has no state that a run changes

    def forward(self, x: Any) -> Tensor | dict[str, Tensor]:
        """What it puts out, on the device of the images."""
        if isinstance(x, fx.Proxy):
            raise TypeError("an ONNX file is run as a black box")
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(
                f"expected its input to have {self.channels} channels, but got {x.shape[1]}"
            )
        images = x.detach().to("cpu", self._dtype)
        if self.channels_last:
            images = images.movedim(1, 3)
        found = self._session.run(None, {self._input: images.contiguous().numpy()})
        tensors = [torch.from_numpy(value).to(x.device) for value in found]
        return tensors[0] if len(tensors) == 1 else dict(zip(self._outputs, tensors, strict=True))
