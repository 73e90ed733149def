"""Nets that are to be measured, from checkpoints of ours or of other people's (Sections 3.4 and 4.2)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resrepro.data import load_dataset
from resrepro.data.augment import Normalisation, laid_out, memory_format
from resrepro.data.photos import imagenet_classes
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.weights import COUNTER, Found, choose, fill, fitted, read_weights
from resrepro.nets import Net
from resrepro.nets.layers import folded
from resrepro.records.reading import CHECKPOINT, EVALS, RESULT, SPEC, WEIGHTS, read_json
from resrepro.spec import Spec, catalogue, net_label
from resrepro.spec.recipe import FAMILIES, ImageNetRecipe, Recipe, recipe_from_json
from resrepro.training.checkpoint import load_checkpoint
from resrepro.training.engine import arithmetic
from resrepro.training.measure import Member, window_of

PER_PIXEL = "per_pixel"  # the mean image of the training set
USUAL = {  # the normalisation that most public checkpoints of a family were trained with
    "cifar": "--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616",
    "imagenet": "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
}


@dataclass(frozen=True)
class ThirdPartyCheckpoint:
    """How to understand a checkpoint that is not ours: the net, and the normalisation it expects. `mean` and
    `std` are per channel, on pixels scaled to 0..1; `mean` may also be "per_pixel", the mean image of the
    training set, or the `.npy` file of one.
    """

    depth: int | None = None
    plain: bool = False
    shortcut: str | None = None
    mean: Sequence[float] | str | Path | None = None
    std: Sequence[float] | None = None
    option_a_zeros: str | None = None  # where None, both places are tried
    stride_3x3: bool = False
    image_size: int | None = None
    weights: str | None = None  # the key of a set, where the file has several


@dataclass(frozen=True)
class LoadedNet:
    """A net ready to be measured."""

    net: Net
    normalisation: Normalisation
    spec: Spec
    label: str
    path: Path
    num_classes: int
    classes: tuple[str, ...] | None  # that its outputs stand for; None of CIFAR and where it is not known
    facts: dict[str, Any]  # what its evaluation records of it
    record: Path  # the folder in which its evaluations lie
    iteration: int | None = None  # updates made, None if not known
    seed: int | None = None  # that of its run, None if it is not ours
    trained_on: Mapping[str, str] = field(default_factory=dict)  # checksums of the data of its run

    @property
    def name(self) -> str:
        """What to call it: the run and its seed, or another's file."""
        if self.seed is None or self.path.parent.name != f"seed{self.seed}":
            return self.path.name
        return f"{self.path.parent.parent.name}, seed {self.seed}"

    @property
    def recipe(self) -> Recipe:
        """The recipe whose views and arithmetic it takes."""
        return self.spec.recipe

    @property
    def family(self) -> str:
        """`cifar` or `imagenet`."""
        return FAMILIES[self.spec.dataset]

    def precision_on(self, device: torch.device) -> str:
        """The arithmetic it is measured in: its recipe's, or float32 where that is not to be had."""
        if self.seed is None or (self.recipe.precision == "tf32" and device.type != "cuda"):
            return "float32"
        return self.recipe.precision

    def member(self, device: torch.device) -> Member:
        """The net on a device, ready to be measured."""
        net = self.net.to(device).to(memory_format=memory_format(device))
        normalisation = self.normalisation.to(device)
        return Member(net, normalisation, self.precision_on(device), window_of(self.recipe))

    def check_images(self, checksums: Mapping[str, str], part: str, otherwise: str = "") -> None:
        """Check (RecordError) that the images at hand are those trained on, and a set that of the run."""
        sets = {"train"} | ({part} & self.trained_on.keys())
        if any(checksums.get(name) != self.trained_on.get(name) for name in sets):
            raise RecordError(
                f"{self.name} was trained on other images than those at hand (checksum differs): "
                f"name the data that it was trained on{otherwise}."
            )

    def as_member(self) -> dict[str, Any]:
        """What the record of an ensemble keeps of it."""
        result = self.path.parent / RESULT
        full = catalogue.find(self.spec.experiment).spec().recipe.iterations
        finished = "shortened" if self.recipe.iterations < full else "complete"
        return {
            "name": self.spec.name, "label": self.spec.label, "seed": self.seed, "digest": self.spec.digest,
            "iteration": self.iteration,
            "status": finished if (self.iteration or 0) >= self.recipe.iterations else "partial",
            "departures": catalogue.departures(self.spec),
            "notices": read_json(result).get("notices", []) if result.exists() else [],
        }  # fmt: skip


def read_net(
    target: str | Path, dataset: str | None = None, third_party: ThirdPartyCheckpoint | None = None,
    runs: Path = Path("runs"), data: str | Path | None = None, split: str | None = None,
) -> LoadedNet:  # fmt: skip
    """The net of a run folder, of a checkpoint of ours, or of another's, which may be a `.safetensors` file,
    to be measured on `dataset`. Evaluations of others' are kept in `<runs>/foreign/`; their mean per pixel is
    that of the training images in `data`, of a `split`. UsageError if another's checkpoint comes without
    net or normalisation, or ours with them; RecordError if one is damaged, unsafe or does not fit the net.
    """
    path = Path(target)
    if path.is_dir():
        found = [path / name for name in (CHECKPOINT, WEIGHTS) if (path / name).exists()]
        if not found and (seeds := sorted(path.glob("seed*"))):
            raise UsageError(f"{path} holds the seeds of a run: name one of them, such as {seeds[0]}.")
        if not found:
            raise UsageError(f"{path} holds neither {CHECKPOINT} nor {WEIGHTS}: its net is not at hand.")
        path = found[0]
    third_party = third_party or ThirdPartyCheckpoint()
    content = read_weights(path) if path.suffix == ".safetensors" else load_checkpoint(path)
    if not {"digest", "spec", "net", "iteration"} <= content.keys():
        return _theirs(path, content, dataset or "cifar10", third_party, runs, data, split)
    if third_party != ThirdPartyCheckpoint():
        raise UsageError(
            f"{path} is a run of ours and says itself what net it is: leave the net's options out."
        )
    return _ours(path, content, dataset)


def _ours(path: Path, content: dict[str, Any], dataset: str | None) -> LoadedNet:
    try:
        stored, mean = content["spec"], content["mean"]
        recipe = recipe_from_json(stored["recipe"])
        spec = catalogue.derive(catalogue.find(stored["experiment"]), stored["shortcut"], **vars(recipe))
        if spec.to_json() != stored:
            raise ValueError
        num_classes, iteration, seed = (int(content[key]) for key in ("num_classes", "iteration", "seed"))
        classes, trained_on = content.get("classes"), dict(content["data"])
        weights = {key: tensor for key, tensor in content["net"].items() if not key.endswith(COUNTER)}
        weights, _ = fitted(spec, num_classes, weights, str(path))
        net, normalisation = fill(spec, num_classes, weights), Normalisation(recipe, mean)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise RecordError(f"{path} is not a whole checkpoint of ours ({type(error).__name__}).") from None
    if dataset is not None and FAMILIES.get(dataset) != FAMILIES[spec.dataset]:
        raise UsageError(f"{path} was trained on {spec.dataset}, whose nets do not fit {dataset}.")
    label = f"{spec.label} after {iteration:,} of {spec.recipe.iterations:,} iterations"
    return LoadedNet(
        net, normalisation, spec, label, path, num_classes, None if classes is None else tuple(classes),
        {"digest": spec.digest, "iteration": iteration}, path.parent / EVALS, iteration, seed, trained_on,
    )  # fmt: skip


def _theirs(
    path: Path, content: Any, dataset: str, third_party: ThirdPartyCheckpoint, runs: Path,
    data: str | Path | None, split: str | None,
) -> LoadedNet:  # fmt: skip
    if third_party.depth is None:
        raise UsageError(f"{path} is not a run of ours: name its net with --depth and --plain or --shortcut.")
    experiment = catalogue.experiment_for(dataset, third_party.depth, third_party.plain, third_party.shortcut)
    if third_party.mean is None or third_party.std is None:
        raise UsageError(
            f"{path} is not a run of ours: give the mean and channel std that its net was trained with, "
            f"e.g. {USUAL[experiment.family]}."
        )
    std = _in_range(third_party.std)
    mean, named_mean = mean_of(third_party.mean, dataset, data, split)
    spec = catalogue.derive(
        experiment, third_party.shortcut, option_a_zeros=third_party.option_a_zeros,
        stride_3x3=third_party.stride_3x3 or None, image_size=third_party.image_size,
    )  # fmt: skip
    recipe = spec.recipe
    zeros = f", {recipe.option_a_zeros} zeros" if spec.shortcut == "A" else ""
    option = f" (option {spec.shortcut}{zeros})" if spec.shortcut else ""
    later = ", stride on the 3x3" if isinstance(recipe, ImageNetRecipe) and recipe.stride_3x3 else ""
    label = net_label(spec.depth, spec.plain) + option + later

    def fit(tensors: Mapping[str, Tensor]) -> tuple[int, Found]:
        matrices = [tensor for tensor in tensors.values() if tensor.ndim == 2]  # the last is the classifier
        num_classes = 10 if experiment.family == "cifar" else len(matrices[-1]) if matrices else 1000
        hint = " Check --depth, --plain and --shortcut."
        return num_classes, fitted(spec, num_classes, tensors, str(path), label, hint)

    key, (num_classes, (weights, left_out)) = choose(content, str(path), third_party.weights, fit)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "checkpoint": path.name, "sha256": sha256, "net": label,
        "option_a_zeros": recipe.option_a_zeros if spec.shortcut == "A" else None, "mean": named_mean,
        "std": list(std), "image_size": getattr(recipe, "image_size", None), "matched_by": "name",
        **({"weights": key} if key else {}), **({"left_out": left_out} if left_out else {}),
    }  # fmt: skip
    per_channel = torch.tensor(std, dtype=torch.float32).reshape(3, 1, 1) * 255
    classes = imagenet_classes() if dataset == "imagenet" and num_classes == len(imagenet_classes()) else None
    return LoadedNet(
        fill(spec, num_classes, weights), Normalisation(recipe, mean, per_channel), spec, label, path,
        num_classes, classes, facts, runs / "foreign" / f"{path.stem}-{sha256[:8]}",
    )  # fmt: skip


def _in_range(numbers: Sequence[float], least: float = 1e-6) -> tuple[float, ...]:
    """Three numbers of `--mean` or `--std`, checked (UsageError)."""
    if len(numbers) != 3 or not all(least <= number <= 1 for number in numbers):
        raise UsageError(
            "--mean and --std take three numbers each, of pixels scaled to 0..1, every --std above 0: "
            "divide those of 0..255 by 255."
        )
    return tuple(numbers)


def mean_of(
    mean: Sequence[float] | str | Path, dataset: str, data: str | Path | None, split: str | None
) -> tuple[Tensor, Any]:
    """The mean to subtract, (3, 1, 1) or (3, H, W) in 0..255, and what the record calls it. A `.npy` file has
    a mean image of 0..1 or 0..255, channels first or last. UsageError if it is out of range, or of
    photographs per pixel; RecordError if its file is no mean image.
    """
    if not isinstance(mean, str | Path):
        numbers = _in_range(mean, 0)
        return torch.tensor(numbers, dtype=torch.float32).reshape(3, 1, 1) * 255, list(numbers)
    if str(mean) == PER_PIXEL:
        if FAMILIES[dataset] == "imagenet":
            raise UsageError(
                "--mean per_pixel is of CIFAR-10 and the digits: for photographs name the mean image's .npy "
                "file."
            )
        pixels = load_dataset(dataset, split or "all", data).train.pixels
        image = pixels.mean(axis=0, dtype=np.float64)
        return torch.from_numpy(image).float(), f"{PER_PIXEL}, {dataset}-{split or 'all'}"
    path = Path(mean)
    try:
        image = np.load(path, allow_pickle=False).astype(np.float32)
    except FileNotFoundError:
        raise RecordError(
            f"there is no file {path} (--mean takes R,G,B, per_pixel or a .npy file)."
        ) from None
    except (OSError, ValueError, TypeError, EOFError, AttributeError):
        raise RecordError(f"{path} is no array of numbers of numpy (.npy), or is damaged.") from None
    if image.ndim == 3 and image.shape[0] != 3 and image.shape[2] == 3:
        image = image.transpose(2, 0, 1)
    if image.ndim != 3 or len(image) != 3 or not (image.min() >= 0 and image.max() <= 255):
        raise RecordError(f"{path} is no mean image: expected (3, height, width), numbers of 0..1 or 0..255.")
    image = np.ascontiguousarray(image * (255 if image.max() <= 1 else 1))
    return torch.from_numpy(image), f"{path.name}, sha256 {hashlib.sha256(image.data).hexdigest()[:8]}"


class TrainedNet(nn.Module):
    """A trained net in evaluation mode, on images as they are stored, that answers as `eval` measures it: in
    the arithmetic of its training, BN folded into the convolutions. `net` is the net alone, in float32 and on
    normalised images: `trained.net(trained.normalise(pixels))`.
    """

    mean: Tensor
    divisor: Tensor

    def __init__(self, net: Net, normalisation: Normalisation, precision: str) -> None:
        super().__init__()
        self.net, self.precision = net, precision
        self.register_buffer("mean", normalisation.mean)
        self.register_buffer("divisor", normalisation.divisor)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 (N, 3, H, W), of any type -> what the net sees, float32 of the same shape."""
        return laid_out((pixels.float() - self.mean) / self.divisor)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 (N, 3, H, W) -> logits (N, classes), float32."""
        with arithmetic(self.precision, pixels.device):
            return folded(self.net)(self.normalise(pixels)).float()  # type: ignore[no-any-return]


def load_net(run: str | Path, seed: int = 0) -> TrainedNet:
    """The trained net of a run, from its published weights or its checkpoint, on the CPU; `run` is its
    folder, or that of all its seeds, of which `seed` tells the one. UsageError if there is no such folder, or
    neither weights nor a checkpoint in it; RecordError if the file is damaged.
    """
    folder = Path(run)
    folder = folder if (folder / SPEC).exists() or folder.is_file() else folder / f"seed{seed}"
    if not folder.exists():
        raise UsageError(f"there is no run in {folder}: name a run's folder, such as results/NAME/seed0.")
    loaded = read_net(folder)
    return TrainedNet(loaded.net, loaded.normalisation, loaded.precision_on(torch.device("cpu"))).eval()
