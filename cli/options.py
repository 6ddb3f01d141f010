"""Options that commands share, in groups; `signatures.py` makes a command line of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cnnviz.core.choices import Decode, FigureFormat, HeadChoice, Precision, pixels
from cnnviz.core.data.shards import Shard, shard
from cnnviz.core.errors import UsageError
from cnnviz.core.options import (
    BatchSize,
    Option,
    Seed,
    channel_numbers,
    file_name,
    low_high,
    name_and_file,
    numbers,
)
from cnnviz.core.output.mirrors import mirror
from cnnviz.core.remote import checked, is_url

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model


SOURCES = (
    "a folder (a folder per class in it, or flat), files, a manifest with path and label "
    "(.csv .tsv .txt .json .jsonl), webdataset's tar files, or cifar10:DIR, mnist:DIR, "
    "fashionmnist:DIR, hf-dataset:DIR."
)
IMAGES = (
    "Image files, folders of them, or a data set: a manifest (.csv .tsv .txt .json .jsonl), "
    "webdataset's tar files, or cifar10:DIR, mnist:DIR, fashionmnist:DIR, "
    "hf-dataset:DIR."
)
Limit = Annotated[int | None, Option("Use a seeded, class-balanced sample of N images.", least=1)]
Share = Annotated[
    Shard | None,
    Option(
        "Process only share I (from 0) of N, in its own folder below --out; cnnviz merge joins "
        "the shares. Default: from RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID and _COUNT.",
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
Data = Annotated[
    tuple[Path, ...],
    Option(
        "Folder of the images of the runs' data set; repeatable. Pictures are shown only from here "
        "and from the runs' own folders.",
        ("--data",),
        lambda text, _: Path(text),
        metavar="DIR",
    ),
]
Resume = Annotated[bool, Option("Continue an interrupted run; finished images are kept.")]


def _file_or_url(text: str, _option: str) -> Path | str:
    return checked(text) if is_url(text) else Path(text)


@dataclass(frozen=True)
class ModelOptions:
    """The network, its weights, its preprocessing and its device."""

    HEADING: ClassVar[str] = "model"

    model: Annotated[
        str,
        Option(
            "A torchvision name, timm:NAME, hf:FOLDER_OR_ID, open_clip:NAME, yolo:FILE.pt, "
            "path/to/file.py:factory, package.module:factory, a .onnx file, or the model that "
            "ships with cnnviz.",
            ("--model", "-m"),
        ),
    ] = "bundled"
    checkpoint: Annotated[
        Path | str | None,
        Option(
            "Weights from a file or URL: .pth .pt .th .ckpt .safetensors, a TorchScript or "
            "torch.export archive (these, and weights of torchvision's networks, need no --model).",
            parse=_file_or_url,
            metavar="PATH",
        ),
    ] = None
    state: Annotated[
        str | None,
        Option(
            "Weights to read from a checkpoint with several sets, by key or prefix. Default: "
            "the one that fits best, averaged weights (EMA) before raw ones."
        ),
    ] = None
    weights: Annotated[
        str | None,
        Option("A torchvision weights name (DEFAULT, IMAGENET1K_V1, …), or none for random ones."),
    ] = None
    labels: Annotated[
        Path | None,
        Option("Class names: a text file, one per line, or a JSON list, map or config.json."),
    ] = None
    head: Annotated[
        HeadChoice,
        Option(
            "What the network's outputs mean: softmax (exactly one class), sigmoid (independent "
            "classes), probabilities, none (regression); auto determines it and prints a note."
        ),
    ] = HeadChoice.AUTO
    pick: Annotated[
        str | None,
        Option(
            "Output to read from a network with several: name, number or path/to/file.py:function, "
            "which converts the network's output to a tensor (N,) or (N, K).",
            ("--output",),
        ),
    ] = None
    threshold: Annotated[
        float,
        Option(
            "With --head sigmoid: minimum probability of a predicted class; for detectors: minimum "
            "score of a box.",
            least=0,
            most=1,
        ),
    ] = 0.5
    inputs: Annotated[
        tuple[tuple[str, str], ...],
        Option(
            "Another input of a network that takes several, as NAME=FILE: an image, or numbers "
            "(.npy .json .csv); repeatable. It stays fixed.",
            ("--input",),
            name_and_file,
            metavar="NAME=FILE",
        ),
    ] = ()
    cover: Annotated[
        str | None,
        Option("With --input: the input that is the image. Default: the first one not given."),
    ] = None
    like: Annotated[
        Path | None,
        Option(
            "Explain the similarity to this reference image: the cosine of the features before "
            "the classifier, or of an embedding.",
            parse=file_name,
        ),
    ] = None
    like_layer: Annotated[
        str | None, Option("With --like: layer whose output is compared instead.")
    ] = None
    texts: Annotated[
        tuple[str, ...],
        Option(
            "For networks with a text encoder (such as CLIP, hf:): explain the similarity to this "
            "text; several texts are classes, with a softmax over them.",
            ("--text",),
        ),
    ] = ()
    size: Annotated[
        tuple[int, int] | None,
        Option("Side of the working image in pixels, or HxW.", parse=pixels),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None, Option("Channel means, as 0.485,0.456,0.406.", parse=numbers)
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        Option("Channel standard deviations, as 0.229,0.224,0.225.", parse=numbers),
    ] = None
    value_range: Annotated[
        tuple[float, float] | None,
        Option(
            "Values of arrays (.npy .npz) and TIFF files that are mapped to 0 and 1, as 0,10000. "
            "Default: 0,255 for bytes; floats in [0, 1] are kept.",
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
    decode: Annotated[
        Decode,
        Option(
            "JPEG files: exact, or fast, which decodes large ones at 1/2, 1/4 or 1/8 of their size "
            "(a little less exact); the summary says so."
        ),
    ] = Decode.EXACT
    device: Annotated[str, Option("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    precision: Annotated[Precision, Option("Floating-point precision.")] = Precision.FP32
    batch_size: BatchSize = None
    repeat: Annotated[
        int,
        Option(
            "Average scores over N forward passes (for stochastic networks).",
            least=1,
            most=10_000,
        ),
    ] = 1
    seed: Seed = 0

    def load(self, *, scores: bool = True, features: bool = False) -> "Model":
        """Loads the model (see `load_model`)."""
        from cnnviz.core.data.inputs import read_input
        from cnnviz.core.models.load import load_model

        if self.like_layer is not None and self.like is None:
            raise UsageError(f"--like-layer {self.like_layer}: it needs --like, a reference image")
        model = load_model(
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
            features=features or self.like is not None or bool(self.texts),
            inputs=[(name, partial(read_input, name, file)) for name, file in self.inputs],
            cover=self.cover,
            decode=self.decode,
        )
        if self.like is None and not self.texts:
            return model
        from cnnviz.embeddings.likeness import describe, like

        if self.texts and self.like is not None:
            raise UsageError("--text and --like are two references; give one of them")
        if self.like is None:
            return describe(model, self.texts)
        return like(model, self.like, self.like_layer)


def _folder(text: str, option: str) -> Path:
    if not text.strip():
        raise UsageError(f"{option} '{text}' is not a folder name; use . for the current folder")
    return mirror(text) if is_url(text) else Path(text)


@dataclass(frozen=True)
class OutputOptions:
    """Where results are written and what the terminal shows."""

    HEADING: ClassVar[str] = "output"

    out: Annotated[
        Path | None,
        Option(
            "Folder of the results, or its URL. Default: cnnviz-out/COMMAND.",
            ("--out", "-o"),
            _folder,
            metavar="DIR",
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace the results of an earlier run.")] = False
    json: Annotated[bool, Option("Print the summary as JSON and nothing else.")] = False
    quiet: Annotated[bool, Option("No progress and no table.", ("--quiet", "-q"))] = False
    format: Annotated[
        FigureFormat, Option("File format of figures; sheets of pixels are always PNG.")
    ] = FigureFormat.PNG
    width: Annotated[
        int,
        Option(
            "Pixels of a figure of one panel (image and map); text scales with it, figures of more "
            "panels are wider.",
            least=600,
            most=10_000,
        ),
    ] = 1200
    junit: Annotated[
        Path | None,
        Option(
            "Also write a JUnit report: a test case per image, with the requested checks.",
            metavar="FILE",
        ),
    ] = None

    dark: Annotated[
        bool, Option("Draw figures light on dark; images and sheets of pixels do not change.")
    ] = False
    report: Annotated[
        bool, Option("Also write report.html, one self-contained page of the run.")
    ] = False

    def folder(self, command: str) -> Path:
        """`--out`, or the command's own folder."""
        return self.out or Path("cnnviz-out") / command


def _cluster(text: str, option: str) -> str:
    kind, _, address = text.partition(":")
    if kind != "ray" or text.endswith(":"):
        raise UsageError(f"{option} '{text}': it takes ray, or ray:ADDRESS of a running cluster")
    return text if address else kind


@dataclass(frozen=True)
class ClusterOptions:
    """Other processes and machines that compute."""

    HEADING: ClassVar[str] = "cluster"

    cluster: Annotated[
        str | None,
        Option(
            "Compute on a Ray cluster: ray starts workers on this machine, one for each GPU or "
            "core; ray:ADDRESS (ray:auto, ray:HOST:6379) joins a running cluster. Blocks of images "
            "that are done are kept for --resume.",
            ("--cluster",),
            _cluster,
            metavar="ray[:ADDRESS]",
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option("With --cluster: number of workers. Default: as many as fit.", least=1),
    ] = None
    cpus_per_worker: Annotated[
        float, Option("With --cluster: cores of a worker, which decode and compute.", least=0.01)
    ] = 1.0
    gpus_per_worker: Annotated[
        float | None,
        Option(
            "With --cluster: GPUs of a worker, or a share of one. Default: 1 if there are any.",
            least=0,
        ),
    ] = None

    @property
    def address(self) -> str | None:
        """The address of a running cluster; None to start one."""
        return (self.cluster or "").partition(":")[2] or None

    def check(self) -> None:
        """Raises a UsageError for options that need `--cluster`."""
        default = ClusterOptions()
        for name in ("workers", "cpus_per_worker", "gpus_per_worker"):
            if self.cluster is None and getattr(self, name) != getattr(default, name):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} needs --cluster ray, which starts workers")
