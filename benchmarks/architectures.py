"""Networks of timm's families, at random weights, through every command; a table for the docs.

    python benchmarks/architectures.py                       every network of the list
    python benchmarks/architectures.py --network vit_tiny_patch16_224
    python benchmarks/architectures.py --write               and writes docs/architectures.md

Each network takes a picture and a small data set of noise at its own input size. The layer of
`activations` and `max-patches` is the last one with maps, that of `ablate` the last convolution
with one. Beside the answers: the engine that `occlude` took and its seconds, next to Captum's
Occlusion of the same positions (16 at a time), in this process, by the processor's clock.

Nothing may end in a traceback; a refusal is a line, which the table gives.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captum.attr import Occlusion
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.models.layers import Form, Layout, Layouts, conv_layers, named_layers
from cnnviz.core.models.load import Model
from cnnviz.occlusion import OcclusionSpec
from cnnviz.occlusion.experiment import Occluder

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
NETWORKS = (
    "resnet18", "resnet10t", "resnetv2_18", "resnest14d", "skresnet18", "regnetx_002",
    "regnety_002", "nf_regnet_b0", "eca_nfnet_l0", "densenet121", "vgg11", "inception_v3",
    "xception41", "dla46_c", "hrnet_w18_small", "efficientnet_lite0", "mobilenetv2_050",
    "mobilenetv3_small_050", "mobilenetv4_conv_small_050", "mnasnet_small", "ghostnet_050",
    "rexnet_100", "lcnet_050", "tinynet_e", "hgnetv2_b0", "repvgg_a0", "mobileone_s0",
    "repvit_m0_9", "starnet_s1", "fasternet_t0", "convnext_atto", "convnextv2_atto",
    "inception_next_atto", "mambaout_femto", "poolformer_s12", "focalnet_tiny_srf",
    "edgenext_xx_small", "mobilevit_xxs", "efficientformer_l1", "levit_128s", "pit_ti_224",
    "xcit_nano_12_p16_224", "pvt_v2_b0", "twins_pcpvt_small", "nest_tiny", "coatnet_nano_rw_224",
    "maxvit_rmlp_pico_rw_256", "swin_tiny_patch4_window7_224", "davit_tiny", "tiny_vit_5m_224",
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224",
    "cait_xxs24_224", "crossvit_tiny_240", "volo_d1_224", "mixer_s32_224", "resmlp_12_224",
    "sequencer2d_s",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came of one network.

    Attributes:
        name: timm's.
        side: of its input.
        form: what the last layer with maps puts out.
        engine: of `occlude`.
        seconds: of `occlude`'s scores.
        ratio: of Captum's seconds to these.
        refused: command to its line.
        crashed: command to what it raised.
    """

    name: str
    side: int
    form: str
    engine: str
    seconds: float
    ratio: float
    refused: dict[str, str]
    crashed: dict[str, str]


def main() -> int:
    """Runs the networks; 1 where one of them crashed a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", help="of timm; default: the list")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for name in asked.network or NETWORKS:
            rows.append(try_out(name, Path(folder)))
            print(line(rows[-1]), flush=True)
            if asked.write:
                PAGE.write_text(page(rows))
    return int(any(row.crashed for row in rows))


def make_data(root: Path) -> None:
    """Twelve pictures of coloured noise in two folders."""
    generator = np.random.default_rng(0)
    for number in range(12):
        place = root / "data" / "01"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((200, 160)).save(place / f"{number}.png")


def try_out(name: str, root: Path) -> Row:
    """Every command, and the time of occlusion."""
    model = load_model(f"timm:{name}", weights="none")
    image = read_image(root / "data" / "0" / "0.png", model.preprocess)
    last, layout, convolution = layers_of(model)
    refused: dict[str, str] = {}
    crashed: dict[str, str] = {}
    for label, command in commands(root, last, convolution, min(model.input_size) // 3).items():
        out = ["--out", str(root / "out" / label), "--overwrite", "--quiet"]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = run([*command, "--model", f"timm:{name}", "--weights", "none", *out])
        except Exception as error:  # noqa: BLE001 (what must not happen, whatever it is)
            crashed[label] = repr(error)
            continue
        if status:
            refused[label] = said.getvalue().strip().splitlines()[-1].removeprefix("cnnviz: ")
    summary = next((root / "out" / "occlude").rglob("summary.json"))
    engine = json.loads(summary.read_text())["results"][0]["engine"]
    ours, captum = times(model, image)
    side = min(model.input_size)
    return Row(name, side, layout.form.value, engine, ours, captum / ours, refused, crashed)


def layers_of(model: Model) -> tuple[str, Layout, str]:
    """The last layer with maps of more than one position, and the last such convolution."""
    layouts = Layouts(model)
    convolutions = [
        name for name, found in layouts.of(conv_layers(model.module), refuse=False).items()
        if found.shape[1] * found.shape[2] > 1
    ]  # fmt: skip
    for name in reversed(list(named_layers(model.module))):
        with contextlib.suppress(Exception):
            found = layouts.of([name], refuse=False).get(name)
            if found is not None and found.form is not Form.VECTOR and found.shape[1] > 1:
                return name, found, convolutions[-1]
    return convolutions[-1], layouts.of(convolutions[-1:])[convolutions[-1]], convolutions[-1]


def commands(root: Path, last: str, convolution: str, mask: int) -> dict[str, list[str]]:
    """A line for each command."""
    photo, data = str(root / "data" / "0" / "0.png"), str(root / "data")
    masks = ["--mask", str(mask), "--stride", str(mask)]
    patches = ["--layer", last, "--filters", "0-3", "--top", "2", "--crop", "effective"]
    return {
        "occlude": ["occlude", photo, *masks],
        "layers": ["layers"],
        "filters": ["filters", "--layer", "first", "--no-gabor"],
        "activations": ["activations", photo, "--layer", last, "--filters", "0-1"],
        "saliency": ["saliency", photo],
        "Grad-CAM": ["saliency", photo, "--method", "grad-cam"],
        "max-patches": ["max-patches", data, *patches],
        "ablate": ["ablate", data, "--filters", f"{convolution}:0"],
        "tsne": ["tsne", data, "--perplexity", "2"],
    }


def times(model: Model, image: WorkingImage) -> tuple[float, float]:
    """Seconds of `occlude`, once it is set up, and of Captum at the same positions."""
    side = min(model.input_size)
    mask = stride = side // 6
    spec = OcclusionSpec(masks=((mask, mask),), stride=stride, targets=("0",))
    pixels = model.preprocess.normalise(image.pixels)[None]
    window, steps = (model.preprocess.channels, mask, mask), (1, stride, stride)
    captum = Occlusion(model.logits)
    occluder = Occluder(model, spec)
    start = time.process_time()
    occluder.run(image)
    between = time.process_time()
    with torch.no_grad():
        captum.attribute(pixels, window, strides=steps, target=0, perturbations_per_eval=16)
    return between - start, time.process_time() - between


def line(row: Row) -> str:
    """A row of the page's table."""
    said = "; ".join(f"{name}: {text}" for name, text in {**row.refused, **row.crashed}.items())
    crash = "**crashed** " if row.crashed else ""
    return (
        f"| `{row.name}` | {row.side} | {row.form} | {row.engine} | {row.seconds:.1f} | "
        f"{row.ratio:.1f} | {crash}{said or 'all'} |"
    )


def page(rows: Sequence[Row]) -> str:
    """The page."""
    whole = sum(not row.refused and not row.crashed for row in rows)
    head = f"""# Architectures that were tried

Written by `python benchmarks/architectures.py --write`: {len(rows)} networks of timm's families at
random weights, each through every command. {whole} of them take all commands; where one is refused,
the table gives its line. Of the last layer with maps it says how they lie: channels second
(N, C, H, W), channels last (N, H, W, C) or tokens (N, T, C). Seconds are those of `occlude` on one
processor thread with masks of a sixth of the side, side by side, once the network is traced; beside
them how many times as long Captum's `Occlusion` takes for the same positions, 16 at a time, in the
same process.

| `timm:` | side | maps | engine | seconds | Captum takes × | commands |
|---|---|---|---|---|---|---|
"""
    return head + "\n".join(line(row).replace("N, ", "") for row in rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
