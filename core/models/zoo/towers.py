"""Networks of an image tower and a text tower (CLIP, SigLIP and their like, of transformers)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, one_line
from cnnviz.core.extras import required


class ImageTower(nn.Module):
    """The image tower as a network of images; it keeps the whole, whose text tower reads texts."""

    def __init__(self, whole: nn.Module, source: str) -> None:
        super().__init__()
        self.whole, self.source = whole, source

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, D)."""
        return _features(self.whole.get_image_features(pixel_values=x))  # type: ignore[operator]

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax over texts."""
        scale: Any = getattr(self.whole, "logit_scale", None)
        return 1.0 if scale is None else float(scale.detach().exp())

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """The features (T, D) of texts.

        Raises:
            UsageError: a text is too long.
            CnnvizError: the tokenizer cannot be read.
        """
        transformers = required("transformers", "--text", "transformers")
        config: Any = self.whole.config
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.source, trust_remote_code=False
            )
        except USER_CODE_ERRORS as error:  # of the library, and of its files
            raise CnnvizError(
                f"the tokenizer of {self.source} cannot be read: {one_line(error)}"
            ) from error
        longest = config.text_config.max_position_embeddings
        for text in texts:
            if (length := len(tokenizer(text)["input_ids"])) > longest:
                raise UsageError(f"--text '{text[:40]}…' has {length} tokens; at most {longest}")
        # SigLIP was trained with texts of equal length.
        siglip = str(config.model_type).startswith("siglip")
        padding: dict[str, Any] = {"padding": True}
        if siglip:
            padding = {"padding": "max_length", "max_length": longest}
        tokens = tokenizer(list(texts), return_tensors="pt", **padding)
        place = next(self.whole.parameters()).device
        keys = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        inputs = {key: tokens[key].to(place) for key in keys if key in tokens}
        return _features(self.whole.get_text_features(**inputs))  # type: ignore[operator]


def _features(output: Any) -> Tensor:
    """The features; newer versions of transformers return them as one field of several."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
