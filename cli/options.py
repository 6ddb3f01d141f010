"""Options that commands share: groups of them (`expand.py` makes a command line of these)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cnnviz.core.choices import FigureFormat, HeadChoice, Precision, pixels
from cnnviz.core.data.shards import Shard, shard
from cnnviz.core.errors import UsageError
from cnnviz.core.options import BatchSize, Option, Seed, channel_numbers, low_high, numbers

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model


SOURCES = (
    "a folder (a folder per class in it, or flat), files, a CSV or JSONL manifest (path,label), "
    "webdataset's tar files, or cifar10:DIR, mnist:DIR, fashionmnist:DIR, hf-dataset:DIR."
)
IMAGES = (
    "Image files, folders of them, or a data set: a CSV or JSONL manifest, webdataset's tar files, "
    "or cifar10:DIR, mnist:DIR, fashionmnist:DIR, hf-dataset:DIR."
)
Limit = Annotated[int | None, Option("A seeded, class-balanced sample of so many images.", least=1)]
Share = Annotated[
    Shard | None,
    Option(
        "Go through share I (from 0) of N alone, in a folder of its own below --out; cnnviz merge "
        "joins them. Default: what RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID and _COUNT say.",
        ("--shard",),
        shard,
        metavar="I/N",
    ),
]
Expect = Annotated[
    str | None,
    Option(
        "Where the object is, in the file's pixels: x0,y0,x1,y1, or a JSON file of boxes "
        "or polygons per image."
    ),
]
Resume = Annotated[bool, Option("Go on with a run that was interrupted; what is done stays.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which network, with which weights, fed how and run where."""

    HEADING: ClassVar[str] = "The model"

    model: Annotated[
        str,
        Option(
            "A torchvision name, timm:NAME, hf:FOLDER_OR_ID, path/to/file.py:factory, "
            "package.module:factory, a .onnx file, or the model that ships with cnnviz.",
            ("--model", "-m"),
        ),
    ] = "bundled"
    checkpoint: Annotated[
        Path | None,
        Option(
            "Weights from a file: .pth .pt .th .ckpt .safetensors, "
            "or a TorchScript or torch.export archive (these need no --model)."
        ),
    ] = None
    state: Annotated[
        str | None,
        Option(
            "Which of several sets of weights in the checkpoint, by key or prefix. Default: "
            "the one that fits best, averaged weights (EMA) before raw ones."
        ),
    ] = None
    weights: Annotated[
        str | None,
        Option("A torchvision weights name (DEFAULT, IMAGENET1K_V1, …), or none for random ones."),
    ] = None
    labels: Annotated[
        Path | None, Option("Class names: a text file, one a line, or a JSON list or map.")
    ] = None
    head: Annotated[
        HeadChoice,
        Option(
            "What the network's numbers mean: softmax (one class holds), sigmoid (each class on "
            "its own), probabilities already, none (a regression); auto finds out and says so."
        ),
    ] = HeadChoice.AUTO
    pick: Annotated[
        str | None,
        Option(
            "Which of several outputs, by name or number, or path/to/file.py:function, which "
            "makes a tensor (N,) or (N, K) of what the network puts out.",
            ("--output",),
        ),
    ] = None
    threshold: Annotated[
        float,
        Option("With --head sigmoid: the probability from which a class holds.", least=0, most=1),
    ] = 0.5
    size: Annotated[
        tuple[int, int] | None,
        Option("Side of the working image in pixels, or HxW.", parse=pixels),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None, Option("Channel means, as 0.485,0.456,0.406.", parse=numbers)
    ] = None
    std: Annotated[
        tuple[float, ...] | None, Option("Channel deviations, likewise.", parse=numbers)
    ] = None
    value_range: Annotated[
        tuple[float, float] | None,
        Option(
            "The values of arrays (.npy .npz) and TIFF files that stand for 0 and 1, as 0,10000. "
            "Default: 0,255 for bytes; floats in [0, 1] as they are.",
            ("--range",),
            low_high,
        ),
    ] = None
    show: Annotated[
        tuple[int, ...] | None,
        Option(
            "Channels drawn as red, green and blue, counted from 1, as 4,3,2, or one as grey. "
            "Default: the first three.",
            parse=channel_numbers,
        ),
    ] = None
    device: Annotated[str, Option("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    precision: Annotated[Precision, Option("Number format of weights and activations.")] = (
        Precision.FP32
    )
    batch_size: BatchSize = None
    repeat: Annotated[
        int,
        Option(
            "Passes that scores are averaged over, for a network that answers differently each "
            "time.",
            least=1,
            most=10_000,
        ),
    ] = 1
    seed: Seed = 0

    def load(self, *, scores: bool = True) -> "Model":
        """The model these options describe, ready to run (`load_model` says what `scores` are)."""
        from cnnviz.core.models.load import load_model

        return load_model(
            self.model,
            checkpoint=self.checkpoint,
            weights=self.weights,
            labels=self.labels,
            size=self.size,
            mean=self.mean,
            std=self.std,
            value_range=self.value_range,
            show=self.show,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            state=self.state,
            head=self.head,
            output=self.pick,
            threshold=self.threshold,
            repeat=self.repeat,
            scores=scores,
        )


def _folder(text: str, option: str) -> Path:
    if not text.strip():
        raise UsageError(f"{option} '{text}' names no folder; . is the current one")
    return Path(text)


@dataclass(frozen=True)
class OutputOptions:
    """Where results go and what the terminal shows."""

    HEADING: ClassVar[str] = "Output"

    out: Annotated[
        Path | None,
        Option(
            "Output folder (cnnviz-out/<command> if not given).",
            ("--out", "-o"),
            _folder,
            metavar="<path>",
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace an earlier run's results.")] = False
    json: Annotated[bool, Option("Print the summary as JSON and nothing else.")] = False
    quiet: Annotated[bool, Option("No progress and no table.", ("--quiet", "-q"))] = False
    format: Annotated[
        FigureFormat, Option("What figures are written as; sheets of pixels are always PNG.")
    ] = FigureFormat.PNG
    junit: Annotated[
        Path | None,
        Option(
            "Also write a JUnit report: a test case for each image, with the checks asked for.",
            metavar="<file>",
        ),
    ] = None

    dark: Annotated[
        bool, Option("Figures light on dark; pictures, and sheets of pixels, stay as they are.")
    ] = False
    report: Annotated[
        bool, Option("Also write report.html: a page of the run that opens anywhere, offline.")
    ] = False

    def folder(self, command: str) -> Path:
        """`--out`, or the command's own folder."""
        return self.out or Path("cnnviz-out") / command
