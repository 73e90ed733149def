"""What several test modules share, without torch: made-up records, CIFAR-10 files and photographs."""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from queues import Queue

from resrepro.machine import gpus
from resrepro.records.reading import json_bytes, read_json

if not gpus():  # Triton computes on the CPU then; asked when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent
RECORD_BYTES = 3073  # of one image in CIFAR-10's binary layout: a label, then 3 x 32 x 32 pixels
IMAGES_PER_FILE = 10_000
SMALL_TEST_SET = 60
FIRST_IMAGES = "the test set holds only the first {:,} of the 10,000 test images"
SIZES = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "45k5k": {"train": 45_000, "val": 5_000, "test": 10_000},
    "digits": {"train": 1_438, "test": 359},
    "imagenet": {"train": 1_281_167, "val": 50_000},
    "folder": {"train": 5_000, "val": 500},
}  # images of made-up runs


def use_one_thread() -> None:
    """The nets here are so small that threads would only wait for each other."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        for item in wanting if not torch.cuda.is_available() else ():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compute with one thread, keep out of the user's cache, and do not wait for the disk."""
    use_one_thread()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def no_leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the user's data folder out, and put torch's threads back where a test changed them."""
    monkeypatch.delenv("RESREPRO_DATA", raising=False)
    yield
    use_one_thread()


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, in a terminal of 80 columns."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def made_up(empty_folder: None, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """An empty folder, in which commands make runs up; returns what is to end otherwise."""
    from commands import MadeUp

    ends = MadeUp()
    monkeypatch.setattr("resrepro.launch.local.Command", ends)
    return ends


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """A made-up queue of a cluster, in which there is nothing."""
    found = Queue(tmp_path / "bin", monkeypatch)
    found.answers("squeue")
    return found


# --- run records ------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One made-up point of the curves: top-1 errors in percent."""

    iteration: int
    train: float
    held_out: float


def falling_curve(iterations: int, every: int, seed: int) -> list[Point]:
    """Errors falling from 90 % to about 5 % (training) and 10 % (held out); the seed shifts them."""
    marks, shift = [*range(every, iterations, every), iterations], 0.25 * seed
    ahead = [1 - k / iterations for k in marks]
    train = [round(5 + shift + 85 * rest, 4) for rest in ahead]
    held_out = [round(10 + shift + 80 * rest, 4) for rest in ahead]
    return [Point(*point) for point in zip(marks, train, held_out, strict=True)]


def write_run(
    folder: Path, experiment: str = "cifar10-resnet20", seed: int = 0, *,
    curve: Sequence[tuple[int, float, float]] | None = None, status: str | None = None,
    shortcut: str | None = None, data: str = "official", mode: str = "default",
    notices: tuple[str, ...] = (), warmup_switch: int | None = None, classes: int | None = None,
    test_images: int | None = None, evals: Mapping[str, tuple[float, float]] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Write a made-up record below the runs folder `folder`; returns the run's own folder.

    `curve` is a list of (iteration, training error, held-out error), whose end gives the status unless it is
    given; `data` is any word, from which the checksums are made; of CIFAR-10 so many `test_images` were at
    hand (default: all); `evals` are top-1 and top-5 errors of photographs by protocol; `settings` go to
    `resrepro.spec.catalogue.derive`.
    """
    from resrepro.records.storage import RunWriter
    from resrepro.spec import catalogue, command_for

    spec = catalogue.derive(catalogue.find(experiment), shortcut, **settings)
    recipe = spec.recipe
    points = [Point(*point) for point in curve or ()]
    if curve is None:
        points = falling_curve(recipe.iterations, recipe.eval_every or recipe.dense_sampling, seed)
    done = points[-1].iteration if points else 0
    if status is None:
        exact = catalogue.find(experiment).spec().recipe.iterations
        status = "partial" if done < recipe.iterations else "complete" if done >= exact else "shortened"
    split = getattr(recipe, "split", "all")
    sizes = dict(SIZES["45k5k" if split == "45k5k" else spec.dataset])
    held_out = [part for part in sizes if part != "train"]
    headline = held_out[0]
    test_data = data
    if test_images is not None:
        sizes["test"], test_data = test_images, f"{data} {test_images}"
        if test_images < IMAGES_PER_FILE:
            notices = (*notices, FIRST_IMAGES.format(test_images))
    about: dict[str, Any] = {
        "name": spec.dataset,
        "images": sizes,
        "sha256": {
            part: hashlib.sha256(f"{text} {part}".encode()).hexdigest()
            for part, text in (("train", data), (held_out[-1], test_data))
        },
        "notices": list(notices),
    }
    if headline == "val" and split == "all":
        about["classes"] = classes or {"imagenet": 1000, "folder": 10}[spec.dataset]
    writer = RunWriter(folder / spec.name / f"seed{seed}")
    writer.folder.mkdir(parents=True, exist_ok=True)
    env = {
        "format": 2, "versions": {"python": "3.11.9", "resrepro": "0.1.0", "torch": "2.6.0"}, "commit": None,
        "modified": None, "system": "Linux x86_64", "cpu": "a made-up CPU", "cores": 2, "arguments": None,
        "started": "2015-12-10", "device": "cpu", "gpu": None, "threads": 2, "mode": mode, "data": about,
        "command": command_for(spec, seed),
    }  # fmt: skip
    writer.begin(spec, seed, env)
    writer.append(
        row for point in points for row in _rows(point, held_out, recipe, sizes["train"], warmup_switch)
    )
    last = {}
    for part in ("train", *held_out) if points else ():
        error = points[-1].train if part == "train" else points[-1].held_out
        last[part] = {"loss": _loss(error), "top1_err": error, "top5_err": round(error / 10, 4)}
    best = min(points, key=lambda point: point.held_out, default=None)
    result = {
        "status": status, "iteration": done, "iterations": recipe.iterations, "headline": headline,
        "last": last, "best": best and {"iteration": best.iteration, "top1_err": best.held_out},
        "warmup_switch": warmup_switch, "seconds": 0.5 * done, "departures": catalogue.departures(spec),
        "notices": list(notices),
    }  # fmt: skip
    writer.result(result)
    for protocol, errors in (evals or {}).items():
        write_eval(writer.folder, protocol, *errors)
    return writer.folder


def runs_in(folder: Path) -> tuple[Any, ...]:
    """The runs below a folder, none of which is broken."""
    from resrepro.records.collection import collect

    found = collect([folder])
    assert not found.broken
    return found.runs


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a JSON record and seal it anew."""
    content = read_json(path)
    change(content)
    path.write_bytes(json_bytes(content))


def _write_measured(
    folder: Path, name: str, data: Mapping[str, Any], part: str, errors: Sequence[float],
    told: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Write errors (top-1, top-5) on all images of a part; returns the file."""
    count = data["images"][part]
    kept = {key: text for key, text in data["sha256"].items() if key == part or part == "test"}
    images = data["images"] if part == "test" else {part: count}
    measured = {"loss": _loss(errors[0]), "top1_err": errors[0], "top5_err": errors[1], "count": count}
    content = {"format": 2, "bn_stats": "running", "data": {**data, "images": images, "sha256": kept}}
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(json_bytes(content | {"errors": {part: measured}} | told))
    return path


def _of_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of a run, and what its evaluations say of it."""
    spec, env, result = (read_json(folder / f"{kind}.json") for kind in ("spec", "env", "result"))
    bn_stats = spec["spec"]["recipe"].get("bn_stats", "running")
    return env["data"], {"digest": spec["digest"], "iteration": result["iteration"], "bn_stats": bn_stats}


def write_eval(folder: Path, protocol: str, top1: float, top5: float, name: str = "", **changed: Any) -> Path:
    """Write a made-up evaluation of a made-up run, on its validation images; returns the file.

    `changed` replaces entries of the record; `name` is that of the file, by default the protocol's.
    """
    data, told = _of_run(folder)
    told |= {"protocol": protocol} | changed
    return _write_measured(folder / "evals", name or protocol, data, "val", (top1, top5), told)


def write_test_eval(
    folder: Path, top1: float, images: int = IMAGES_PER_FILE, notices: Sequence[str] = (), **changed: Any
) -> Path:
    """Write a made-up evaluation of a CIFAR-10 run on so many test images; returns the file."""
    data, told = _of_run(folder)
    sums = {"train": data["sha256"]["train"], "test": hashlib.sha256(b"%d" % images).hexdigest()}
    data |= {"images": data["images"] | {"test": images}, "sha256": sums, "notices": list(notices)}
    told |= {"protocol": "single"} | changed
    errors = (top1, round(top1 / 10, 4))
    return _write_measured(folder / "evals", f"single-{images}", data, "test", errors, told)


def write_layers(folder: Path, std: Sequence[float] | None = None, **changed: Any) -> Any:
    """Write made-up responses of a made-up run; returns them as they are read back.

    By default each layer's std is another and lies between 1 and 2; `changed` replaces fields.
    """
    from resrepro.records import read_run
    from resrepro.records.reading import Responses, count_layers

    run = read_run(folder)
    count = len(std) if std else count_layers(run.spec["dataset"], run.spec["depth"])
    told = {
        "layers": tuple(f"stages.0.{index}.conv1" for index in range(count)),
        "std": tuple(std or (1 + (37 * index % count) / count for index in range(count))),
        "gradient_norm_start": tuple(0.5**index for index in range(count)),
        "gradient_norm_end": (0.25,) * count,
        "part": run.headline_split,
        "images": run.env["data"]["images"][run.headline_split],
        "batch": 128,
        "bn_stats": "running",
        "digest": run.digest,
        "seed": run.seed,
        "iteration": run.spec["recipe"]["iterations"],
    }
    (folder / "responses.csv").write_bytes(Responses(**told | changed).to_bytes())
    return read_run(folder).responses


def write_ensemble(
    runs: Path, folders: list[Path], top1: float, top5: float, name: str = "pair", **changed: Any
) -> Path:
    """Write a made-up ensemble of made-up runs below the runs folder `runs`; returns the file."""
    from resrepro.records import read_run
    from resrepro.spec import net_label

    runs_of = [read_run(folder) for folder in folders]
    members = [
        {
            "name": run.name, "label": net_label(run.spec["depth"], run.spec["plain"], run.spec["shortcut"]),
            "seed": run.seed, "digest": run.digest, "iteration": run.result["iteration"],
            "status": run.status, "departures": run.result["departures"], "notices": run.result["notices"],
        }
        for run in runs_of
    ]  # fmt: skip
    told = {"protocol": "multi_scale", "members": members} | changed
    return _write_measured(runs / "ensembles", name, runs_of[0].env["data"], "val", (top1, top5), told)


def _loss(error: float) -> float:
    return round(error / 40, 6)


def _rows(
    point: Point, held_out: list[str], recipe: Any, images: int, switch: int | None
) -> Iterator[tuple[object, ...]]:
    from resrepro.training.updates import learning_rate

    lr = learning_rate(recipe, point.iteration - 1, switch)
    epoch = point.iteration * recipe.batch_size / images
    for part in ("train", *held_out):
        error = point.train if part == "train" else point.held_out
        yield (
            point.iteration, f"{epoch:.4f}", part, f"{_loss(error):.6f}", f"{error:.4f}",
            f"{error / 10:.4f}", f"{lr:.6g}", "1000.0", f"{0.5 * point.iteration:.2f}",
        )  # fmt: skip


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """The factory `write_run`: a made-up but valid record, written without torch."""
    return write_run


# --- CIFAR-10 ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FakeCifar:
    """A folder with a layout of made-up images, and what was written there."""

    folder: Path
    records: Mapping[str, np.ndarray]  # by file name without ending: (N, 3073) uint8, label first
    name: str = "cifar-10-batches-bin"
    ending: str = ".bin"

    @property
    def layout(self) -> Path:
        """The folder of the files themselves."""
        return self.folder / self.name

    def copy_to(self, folder: Path, **changed: bytes | None) -> Path:
        """Another folder of the same files (as links), some with other bytes, or missing (None)."""
        layout = folder / self.name
        layout.mkdir(parents=True)
        for path in (layout / f"{name}{self.ending}" for name in self.records):
            if path.stem not in changed:
                path.symlink_to(self.layout / path.name)
            elif (content := changed[path.stem]) is not None:
                path.write_bytes(content)
        return folder


@pytest.fixture(scope="session")
def fake_cifar(tmp_path_factory: pytest.TempPathFactory) -> FakeCifar:
    """Five complete training files and a test file of 60 images, in the official binary layout."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    records = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        count = SMALL_TEST_SET if name == "test_batch" else IMAGES_PER_FILE
        content = rng.integers(0, 256, (count, RECORD_BYTES), np.uint8)
        content[:, 0] %= 10
        records[name] = content
    (folder / "cifar-10-batches-bin").mkdir()
    for name, content in records.items():
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(content.tobytes())
    return FakeCifar(folder, records)


# --- photographs ------------------------------------------------------------------------------------

PHOTO_CLASSES = ("cat", "dog", "fish", "owl")
PHOTOS_PER_CLASS = {"train": 20, "val": 10}
TURNED = 6  # EXIF orientation: to be shown turned by 90 degrees


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val` of 80 and 40 made-up photographs in 4 classes.

    Every class has some of each kind in `PHOTO_KINDS`; sides are odd and even, from 25 to 79 pixels.
    """
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in PHOTOS_PER_CLASS.items():
        for number, name in enumerate(PHOTO_CLASSES):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                kind = PHOTO_KINDS[k % len(PHOTO_KINDS)]
                width, height = (int(side) for side in rng.integers(25, 80, 2))
                pixels = blotches(rng, height, width, 60 * number)
                write_photo(folder / split / name / f"{k:02}-{kind}", pixels)
    return folder


def blotches(rng: np.random.Generator, height: int, width: int, base: int = 100) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of soft blotches around a grey, as a photograph has them."""
    from PIL import Image

    coarse = rng.integers(-60, 60, (5, 7, 3)) + base
    image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


PHOTO_KINDS = (
    "rgb.jpg", "grey.jpg", "cmyk.jpg", "turned.jpg", "alpha.png", "palette.png", "deep.png", "rgb.png",
)  # fmt: skip


def write_photo(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 3) uint8 as the kind of image that the end of the file name says."""
    from PIL import Image

    image, options = Image.fromarray(pixels), {}
    kind = path.name.rpartition("-")[2]
    if kind == "grey.jpg":
        image = image.convert("L")
    elif kind == "cmyk.jpg":
        image = image.convert("CMYK")
    elif kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = TURNED
        options = {"exif": exif}
    elif kind == "alpha.png":
        image.putalpha(image.convert("L"))
    elif kind == "palette.png":
        image, options = image.quantize(16), {"transparency": bytes(range(0, 256, 16))}
    elif kind == "deep.png":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image.save(path, quality=90, **options)
