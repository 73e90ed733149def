"""Datasets: read as they were written, refused by name when damaged, and labelled when not official."""

import hashlib
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORD_BYTES, ROOT, SMALL_TEST_SET, FakeCifar
from PIL import Image
from sklearn.datasets import load_digits as bundled_digits

from resrepro.data import Dataset, cifar10, load_dataset
from resrepro.errors import DataError, UsageError

TRAIN_FILES = [f"data_batch_{i}" for i in range(1, 6)]
REAL = ROOT.parent / "shared" / "data"


def sha256_of(pixels: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes() + bytes(labels.tolist())).hexdigest()


@pytest.fixture(scope="module")
def loaded(fake_cifar: FakeCifar) -> Dataset:
    return load_dataset("cifar10", folder=fake_cifar.folder)


# --- the binary layout ------------------------------------------------------------------------------


def test_every_image_of_the_binary_layout_is_read_in_order(fake_cifar: FakeCifar, loaded: Dataset) -> None:
    assert loaded.train.pixels.shape == (50_000, 3, 32, 32)
    assert (loaded.train.pixels.dtype, loaded.train.labels.dtype) == (np.uint8, np.int64)
    for number, name in enumerate(TRAIN_FILES):
        part = loaded.train.part(10_000 * number, 10_000 * (number + 1))
        assert np.array_equal(part.labels, fake_cifar.records[name][:, 0])
        assert np.array_equal(part.pixels.reshape(10_000, 3072), fake_cifar.records[name][:, 1:])
    assert list(loaded.held_out) == ["test"]
    assert np.array_equal(loaded.held_out["test"].labels, fake_cifar.records["test_batch"][:, 0])


def test_a_short_test_file_and_unofficial_pixels_are_accepted_with_a_notice_each(loaded: Dataset) -> None:
    pixels, test = loaded.notices
    assert "not those of the official CIFAR-10" in pixels
    assert f"only the first {SMALL_TEST_SET} of the 10,000 test images" in test


def test_checksums_cover_pixels_then_labels(fake_cifar: FakeCifar, loaded: Dataset) -> None:
    test = fake_cifar.records["test_batch"]
    assert loaded.checksums["test"] == sha256_of(test[:, 1:], test[:, 0])
    train = np.concatenate([fake_cifar.records[name] for name in TRAIN_FILES])
    assert loaded.checksums["train"] == sha256_of(train[:, 1:], train[:, 0])


@pytest.mark.parametrize("official", [True, False])
def test_a_complete_test_file_gets_a_notice_unless_it_is_the_official_one(
    fake_cifar: FakeCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official: bool
) -> None:
    whole = fake_cifar.records["data_batch_1"].tobytes()
    if official:
        monkeypatch.setattr(cifar10, "OFFICIAL_TEST_SHA1", hashlib.sha1(whole).hexdigest())
    dataset = load_dataset("cifar10", folder=fake_cifar.copy_to(tmp_path, test_batch=whole))
    assert len(dataset.held_out["test"]) == 10_000
    told = "the test images are not exactly the official ones (checksum differs)"
    assert dataset.notices[1:] == (() if official else (told,))


def test_the_45k5k_split_validates_on_the_last_5000_and_keeps_the_test_set(
    fake_cifar: FakeCifar, loaded: Dataset
) -> None:
    split = load_dataset("cifar10", "45k5k", fake_cifar.folder)
    assert (len(split.train), list(split.held_out)) == (45_000, ["val", "test"])
    assert np.array_equal(split.train.pixels, loaded.train.pixels[:45_000])
    last = fake_cifar.records["data_batch_5"][5_000:]
    assert np.array_equal(split.held_out["val"].labels, last[:, 0])
    assert np.array_equal(split.held_out["val"].pixels.reshape(5_000, 3072), last[:, 1:])
    assert np.array_equal(split.held_out["test"].labels, loaded.held_out["test"].labels)
    assert split.checksums == loaded.checksums


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("data_batch_1", lambda whole: b"", r"data_batch_1\.bin is damaged or truncated: 0 bytes"),
        ("data_batch_5", lambda whole: whole[:-RECORD_BYTES], r"5\.bin .*instead of 30,730,000"),
        ("data_batch_4", lambda whole: whole[:-1], r"4\.bin .*instead of 30,730,000"),
        ("data_batch_4", lambda whole: whole + bytes(1), r"4\.bin is damaged or truncated: 30,730,001 bytes"),
        ("test_batch", lambda whole: whole[:-73], r"test_batch\.bin is damaged or truncated"),
        ("test_batch", lambda whole: b"\n" + whole[1:], r"test_batch\.bin .* holds a label above 9"),
        ("data_batch_3", None, r"incomplete: .*data_batch_3\.bin is missing"),
        ("test_batch", None, r"incomplete: .*test_batch\.bin is missing"),
    ],
)
def test_a_damaged_or_missing_file_is_refused_by_name(
    fake_cifar: FakeCifar, tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, told: str
) -> None:
    content = change(fake_cifar.records[name].tobytes()) if change else None
    with pytest.raises(DataError, match=told):
        load_dataset("cifar10", folder=fake_cifar.copy_to(tmp_path, **{name: content}))


# --- where the data lie -----------------------------------------------------------------------------


def test_the_environment_names_the_folder_and_a_given_folder_wins(
    fake_cifar: FakeCifar, loaded: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", None)  # nothing may be downloaded here
    monkeypatch.setenv("RESREPRO_DATA", str(fake_cifar.layout))
    assert load_dataset("cifar10").checksums == loaded.checksums
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*cifar-10-batches-py or cifar-10-batches-bin"):
        load_dataset("cifar10", folder=tmp_path)
    with pytest.raises(DataError, match=r"nowhere \(--data\) does not exist"):
        load_dataset("cifar10", folder=tmp_path / "nowhere")
    monkeypatch.setenv("RESREPRO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere \(RESREPRO_DATA\) does not exist"):
        load_dataset("cifar10")
    with pytest.raises(UsageError, match=r"'mnist'.*cifar10 and digits"):
        load_dataset("mnist")


def test_without_a_folder_cifar_is_downloaded_to_data_once(
    fake_cifar: FakeCifar, loaded: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(root: str, download: bool) -> None:
        calls.append((root, download))
        fake_cifar.copy_to(Path(root))

    def fail(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(DataError, match=r"could not be downloaded \(no route to host\).*--data"):
        load_dataset("cifar10")
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fetch)
    assert load_dataset("cifar10").checksums == loaded.checksums
    assert load_dataset("cifar10").checksums == loaded.checksums
    assert calls == [("data", True)]


# --- the python layout ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_layout(fake_cifar: FakeCifar, tmp_path_factory: pytest.TempPathFactory) -> FakeCifar:
    """The images of `fake_cifar` as official pickles: data (N, 3072) and labels, keyed by bytes."""
    made = FakeCifar(tmp_path_factory.mktemp("python"), fake_cifar.records, "cifar-10-batches-py", "")
    made.layout.mkdir()
    for name, records in made.records.items():
        batch = {b"data": records[:, 1:], b"labels": records[:, 0].tolist(), b"batch_label": name.encode()}
        (made.layout / name).write_bytes(pickle.dumps(batch, 2))
    return made


@pytest.fixture
def vouched(python_layout: FakeCifar, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Makes the MD5 of the made-up pickles the official ones."""
    files = {name: (python_layout.layout / name).read_bytes() for name in python_layout.records}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cifar10, "OFFICIAL_MD5", sums)
    return sums


def test_the_python_layout_gives_the_same_dataset_as_the_binary_one(
    python_layout: FakeCifar, loaded: Dataset, vouched: dict[str, str]
) -> None:
    dataset = load_dataset("cifar10", folder=python_layout.folder)
    assert np.array_equal(dataset.train.pixels, loaded.train.pixels)
    assert np.array_equal(dataset.train.labels, loaded.train.labels)
    assert dataset.info.describe() == loaded.info.describe()


def test_a_changed_byte_in_a_pickled_batch_is_refused_by_name(
    python_layout: FakeCifar, vouched: dict[str, str], tmp_path: Path
) -> None:
    content = bytearray((python_layout.layout / "data_batch_1").read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(DataError, match="data_batch_1 is damaged: its MD5"):
        load_dataset("cifar10", folder=python_layout.copy_to(tmp_path, data_batch_1=bytes(content)))


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "unpack_cifar10.py").exists(), reason="the real images are not at hand")
def test_the_real_training_images_have_the_official_checksum_and_the_test_images_a_notice(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, str(REAL / "unpack_cifar10.py"), str(tmp_path)], check=True)
    dataset = load_dataset("cifar10", folder=tmp_path)
    assert dataset.checksums["train"] == cifar10.OFFICIAL_TRAIN_SHA256
    # Of the test images at hand twenty are not exact.
    assert dataset.notices == ("the test images are not exactly the official ones (checksum differs)",)
    assert np.bincount(dataset.train.labels).tolist() == [5_000] * 10


# --- archives and PNG files -------------------------------------------------------------------------


def packed(archive: Path, layout: Path) -> Path:
    """The files of a layout as the official archive has them; returns its folder."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as members:
        members.add(layout, layout.name)
    return archive.parent


def test_an_archive_is_read_and_nothing_is_left_beside_it(
    fake_cifar: FakeCifar, loaded: Dataset, tmp_path: Path
) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    folder = packed(archive, fake_cifar.layout)
    for place in (folder, archive):
        assert load_dataset("cifar10", folder=place).info == loaded.info
    assert list(folder.iterdir()) == [archive]
    whole = archive.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"<html>"):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz is damaged or cut short"):
            load_dataset("cifar10", folder=folder)


@pytest.mark.slow
def test_a_pickle_in_an_archive_is_unpickled_only_if_it_is_official(
    python_layout: FakeCifar, vouched: dict[str, str], loaded: Dataset, tmp_path: Path
) -> None:
    folder = packed(tmp_path / "cifar-10-python.tar.gz", python_layout.layout)
    assert load_dataset("cifar10", folder=folder).info == loaded.info
    vouched["data_batch_2"] = "another"
    with pytest.raises(DataError, match=r"tar\.gz/data_batch_2 is damaged: its MD5"):
        load_dataset("cifar10", folder=folder)


def test_png_files_in_class_folders_are_read_each_class_in_turn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        for name in cifar10.CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
                image.save(tmp_path / part / name / f"{k}.png")
    dataset = load_dataset("cifar10", folder=tmp_path)
    assert dataset.train.labels.tolist() == [*range(10)] * 3
    with Image.open(tmp_path / "train/automobile/2.png") as image:
        assert np.array_equal(dataset.train.pixels[21], np.asarray(image).transpose(2, 0, 1))
    assert dataset.notices == (f"{cifar10.PNG}: 30 to train on and 20 to test",)
    with pytest.raises(DataError, match="takes 50,000 training images, not 30"):
        load_dataset("cifar10", "45k5k", tmp_path)
    Image.new("RGB", (33, 32)).save(tmp_path / "test/cat/3.png")
    with pytest.raises(DataError, match=r"cat/3\.png has 33x32 pixels"):
        load_dataset("cifar10", folder=tmp_path)
    (tmp_path / "test/cat/3.png").write_text("no image")
    with pytest.raises(DataError, match=r"cat/3\.png is no readable image \(not an image\)"):
        load_dataset("cifar10", folder=tmp_path)
    shutil.move(tmp_path / "test/cat", tmp_path / "cat")
    with pytest.raises(DataError, match="test has no folder cat"):
        load_dataset("cifar10", folder=tmp_path)
    shutil.move(tmp_path / "cat", tmp_path / "test/lynx")
    with pytest.raises(DataError, match="test has the class 'lynx', which CIFAR-10 lacks"):
        load_dataset("cifar10", folder=tmp_path)


# --- digits and the common parts --------------------------------------------------------------------


def test_the_digits_are_scikit_learns_in_a_fixed_split() -> None:
    dataset = load_dataset("digits")
    test = dataset.held_out["test"]
    assert (len(dataset.train), len(test), list(dataset.held_out)) == (1_438, 359, ["test"])
    assert dataset.train.pixels.shape == (1_438, 3, 16, 16)
    assert (dataset.train.pixels.dtype, dataset.notices) == (np.uint8, ())
    digits = bundled_digits()
    large = np.rint(digits.images * (255 / 16)).repeat(2, axis=1).repeat(2, axis=2)
    last = np.arange(1797) % 5 == 4
    for part, chosen in ((dataset.train, ~last), (test, last)):
        assert np.array_equal(part.labels, digits.target[chosen])
        for channel in range(3):
            assert np.array_equal(part.pixels[:, channel], large[chosen])
