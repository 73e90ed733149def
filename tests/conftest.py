"""What several test modules share, without torch: made-up records, CIFAR-10 files and photographs."""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from queues import Queue

from resrepro.machine import cores, gpus
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


def use_one_thread():
    """The nets here are so small that threads would only wait for each other."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than cores, one of which is idle while a test waits for a command."""
    return cores() + 1


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        for item in wanting if not torch.cuda.is_available() else ():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def sandbox(tmp_path_factory):
    """Compute with one thread, keep out of the user's cache, and do not wait for the disk."""
    use_one_thread()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def no_leftovers(monkeypatch):
    """Keep the user's data folder out, and put torch's threads back where a test changed them."""
    monkeypatch.delenv("RESREPRO_DATA", raising=False)
    yield
    use_one_thread()


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder, in a terminal of 80 columns."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def made_up(empty_folder, monkeypatch):
    """An empty folder, in which commands make runs up; returns what is to end otherwise."""
    from commands import MadeUp

    ends = MadeUp()
    monkeypatch.setattr("resrepro.launch.local.Command", ends)
    return ends


@pytest.fixture
def queue(tmp_path, monkeypatch):
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

    def of(self, part):
        return self.train if part == "train" else self.held_out


def falling_curve(iterations, every, seed):
    """Errors falling from 90 % to about 5 % (training) and 10 % (held out); the seed shifts them."""
    marks, shift = [*range(every, iterations, every), iterations], 0.25 * seed
    ahead = [1 - k / iterations for k in marks]
    train = [round(5 + shift + 85 * rest, 4) for rest in ahead]
    held_out = [round(10 + shift + 80 * rest, 4) for rest in ahead]
    return [Point(*point) for point in zip(marks, train, held_out, strict=True)]


def write_run(
    folder, experiment="cifar10-resnet20", seed=0, *, curve=None, status=None, shortcut=None, data="official",
    mode="default", notices=(), warmup_switch=None, classes=None, test_images=None, evals=None, **settings,
):  # fmt: skip
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
    headline, *others = held_out = [part for part in sizes if part != "train"]
    words = {"train": data, held_out[-1]: data}
    if test_images is not None:
        sizes["test"], words["test"] = test_images, f"{data} {test_images}"
        if test_images < IMAGES_PER_FILE:
            notices = (*notices, FIRST_IMAGES.format(test_images))
    sums = {part: hashlib.sha256(f"{word} {part}".encode()).hexdigest() for part, word in words.items()}
    about = {"name": spec.dataset, "images": sizes, "sha256": sums, "notices": list(notices)}
    if headline == "val" and not others:
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
    parts = ("train", *held_out)
    writer.append(row for point in points for row in _rows(point, parts, recipe, sizes, warmup_switch))
    last = {part: _measured(points[-1].of(part)) for part in parts if points}
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


def runs_in(folder):
    """The runs below a folder, none of which is broken."""
    from resrepro.records.collection import collect

    found = collect([folder])
    assert not found.broken
    return found.runs


def rewrite(path, change):
    """Change the content of a JSON record and seal it anew."""
    content = read_json(path)
    change(content)
    path.write_bytes(json_bytes(content))


def _write_measured(folder, name, data, part, errors, told):
    """Write errors (top-1, top-5) on all images of a part; returns the file."""
    count = data["images"][part]
    kept = {key: text for key, text in data["sha256"].items() if key == part or part == "test"}
    images = data["images"] if part == "test" else {part: count}
    measured = _measured(*errors) | {"count": count}
    content = {"format": 2, "bn_stats": "running", "data": {**data, "images": images, "sha256": kept}}
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(json_bytes(content | {"errors": {part: measured}} | told))
    return path


def _of_run(folder):
    """The data of a run, and what its evaluations say of it."""
    spec, env, result = (read_json(folder / f"{kind}.json") for kind in ("spec", "env", "result"))
    bn_stats = spec["spec"]["recipe"].get("bn_stats", "running")
    return env["data"], {"digest": spec["digest"], "iteration": result["iteration"], "bn_stats": bn_stats}


def write_eval(folder, protocol, top1, top5, name="", **changed):
    """Write a made-up evaluation of a made-up run, on its validation images; returns the file.

    `changed` replaces entries of the record; `name` is that of the file, by default the protocol's.
    """
    data, told = _of_run(folder)
    told |= {"protocol": protocol} | changed
    return _write_measured(folder / "evals", name or protocol, data, "val", (top1, top5), told)


def write_test_eval(folder, top1, images=IMAGES_PER_FILE, notices=(), **changed):
    """Write a made-up evaluation of a CIFAR-10 run on so many test images; returns the file."""
    data, told = _of_run(folder)
    sums = {"train": data["sha256"]["train"], "test": hashlib.sha256(b"%d" % images).hexdigest()}
    data |= {"images": data["images"] | {"test": images}, "sha256": sums, "notices": list(notices)}
    told |= {"protocol": "single"} | changed
    return _write_measured(folder / "evals", f"single-{images}", data, "test", (top1,), told)


def write_layers(folder, std=None, **changed):
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
        "gradient_norm_end": (0.25,) * count, "part": run.headline_split,
        "images": run.env["data"]["images"][run.headline_split], "batch": 128, "bn_stats": "running",
        "digest": run.digest, "seed": run.seed, "iteration": run.spec["recipe"]["iterations"],
    }  # fmt: skip
    (folder / "responses.csv").write_bytes(Responses(**told | changed).to_bytes())
    return read_run(folder).responses


def write_ensemble(runs, folders, top1, top5, name="pair", **changed):
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


def _measured(top1, top5=None):
    top5 = round(top1 / 10, 4) if top5 is None else top5
    return {"loss": round(top1 / 40, 6), "top1_err": top1, "top5_err": top5}


def _rows(point, parts, recipe, sizes, switch):
    from resrepro.training.updates import learning_rate

    lr = learning_rate(recipe, point.iteration - 1, switch)
    epoch, seconds = point.iteration * recipe.batch_size / sizes["train"], 0.5 * point.iteration
    for part in parts:
        errors = "{loss:.6f} {top1_err:.4f} {top5_err:.4f}".format(**_measured(point.of(part))).split()
        yield point.iteration, f"{epoch:.4f}", part, *errors, f"{lr:.6g}", "1000.0", f"{seconds:.2f}"


@pytest.fixture(scope="session")
def make_run():
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
    def layout(self):
        """The folder of the files themselves."""
        return self.folder / self.name

    def copy_to(self, folder, **changed):
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
def fake_cifar(tmp_path_factory):
    """Five complete training files and a test file of 60 images, in the official binary layout."""
    folder = tmp_path_factory.mktemp("cifar")
    rng, found = np.random.default_rng(0), FakeCifar(folder, {})
    found.layout.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        count = SMALL_TEST_SET if name == "test_batch" else IMAGES_PER_FILE
        content = rng.integers(0, 256, (count, RECORD_BYTES), np.uint8)
        content[:, 0] %= 10
        found.records[name] = content
        (found.layout / f"{name}.bin").write_bytes(content.tobytes())
    return found


# --- photographs ------------------------------------------------------------------------------------

PHOTO_CLASSES = ("cat", "dog", "fish", "owl")
PHOTOS_PER_CLASS = {"train": 20, "val": 10}
TURNED = 6  # EXIF orientation: to be shown turned by 90 degrees


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder with `train` and `val` of 80 and 40 made-up photographs in 4 classes, with some
    of each kind in `PHOTO_KINDS` in each; sides are odd and even, from 25 to 79 pixels.
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


def blotches(rng, height, width, base=100):
    """Pixels (H, W, 3) uint8 of soft blotches around a grey, as a photograph has them."""
    from PIL import Image

    coarse = rng.integers(-60, 60, (5, 7, 3)) + base
    image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


PHOTO_KINDS = (
    "rgb.jpg", "grey.jpg", "cmyk.jpg", "turned.jpg", "alpha.png", "palette.png", "deep.png", "rgb.png",
)  # fmt: skip


def write_photo(path, pixels):
    """Write pixels (H, W, 3) uint8 as the kind of image that the end of the file name says."""
    from PIL import Image

    image, options = Image.fromarray(pixels), {}
    kind = path.name.rpartition("-")[2]
    if kind in ("grey.jpg", "cmyk.jpg"):
        image = image.convert("L" if kind == "grey.jpg" else "CMYK")
    elif kind == "turned.jpg":
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = TURNED
    elif kind == "alpha.png":
        image.putalpha(image.convert("L"))
    elif kind == "palette.png":
        image, options = image.quantize(16), {"transparency": bytes(range(0, 256, 16))}
    elif kind == "deep.png":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image.save(path, quality=90, **options)
