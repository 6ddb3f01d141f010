"""Networks of an image tower and a text tower: CLIP, SigLIP and their like.

They are transformers' or open_clip's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, one_line
from cnnviz.core.extras import required


class ImageTower(nn.Module):
    """A network of transformers as its image tower; its text tower reads texts."""

    source: str
    """Where the tokenizer is."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, D)."""
        return _features(self.get_image_features(pixel_values=x))  # type: ignore[operator]

    def scaling(self) -> tuple[float, float | None]:
        """What cosines are multiplied by, and what is added: None before a softmax over texts.

        With an addend (SigLIP) each text has its own probability, a sigmoid.
        """
        scale, bias = (getattr(self, f"logit_{part}", None) for part in ("scale", "bias"))
        return (
            1.0 if scale is None else float(scale.detach().exp()),
            None if bias is None else float(bias.detach()),
        )

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """The features (T, D) of texts.

        Raises:
            UsageError: a text is too long.
            CnnvizError: the tokenizer cannot be read.
        """
        transformers = required("transformers", "--text", "transformers")
        config: Any = self.config
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
        place = next(self.parameters()).device
        keys = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        inputs = {key: tokens[key].to(place) for key in keys if key in tokens}
        return _features(self.get_text_features(**inputs))  # type: ignore[operator]


class OpenClipTower(ImageTower):
    """A network of open_clip as its image tower; its text tower reads texts."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, D)."""
        features: Tensor = self.encode_image(x)  # type: ignore[operator]
        return features

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """The features (T, D) of texts; see `ImageTower.read`."""
        open_clip = required("open_clip", "--text", "open_clip")
        try:
            tokenizer: Any = open_clip.get_tokenizer(self.source)
        except USER_CODE_ERRORS as error:
            raise CnnvizError(
                f"the tokenizer of open_clip:{self.source} cannot be read: {one_line(error)}"
            ) from error
        for text in texts:
            inner = getattr(tokenizer, "tokenizer", None)
            length = len(tokenizer.encode(text)) + 2 if inner is None else len(inner(text)[0])
            if length > tokenizer.context_length:
                raise UsageError(
                    f"--text '{text[:40]}…' has {length} tokens; at most {tokenizer.context_length}"
                )
        tokens = tokenizer(list(texts)).to(next(self.parameters()).device)
        features: Tensor = self.encode_text(tokens)  # type: ignore[operator]
        return features


def as_tower(whole: nn.Module, source: str, kind: type[ImageTower] = ImageTower) -> nn.Module:
    """Make a network answer as its image tower; its class is replaced, layers keep their names."""
    made: Any = whole
    made.__class__ = type(type(whole).__name__, (kind, type(whole)), {"source": source})
    return whole


def _features(output: Any) -> Tensor:
    """The features; newer versions of transformers return them as one field of several."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
