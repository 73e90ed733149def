"""What a machine was seen to need: kept, added to, and forgotten where it is damaged or cannot be kept."""

from pathlib import Path

import pytest

from resrepro.training.seen import FILE, Seen, look_up, remember


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "resrepro" / FILE


def test_costs_and_speeds_are_kept_by_key() -> None:
    assert look_up("net") == Seen()
    remember("net", "kernels", compile_seconds=2.5)
    remember("net", "kernels", images_per_s=800)
    remember("net", "eager", images_per_s=400, compile_seconds=float("nan"))
    remember("other", "eager", images_per_s=1)
    assert look_up("net") == Seen(2.5, {"kernels": 800, "eager": 400})
    remember("net", "kernels", compile_seconds=0, images_per_s=900)
    assert look_up("net") == Seen(2.5, {"kernels": 900, "eager": 400})


def test_the_saving_is_known_once_both_speeds_are() -> None:
    assert Seen(1, {"kernels": 800}).saving("kernels", 100) is None
    assert Seen(1, {"eager": 800}).saving("kernels", 100) is None
    assert Seen(None, {"kernels": 800, "eager": 400}).saving("kernels", 1600) == pytest.approx(2)
    assert Seen(None, {"kernels": 200, "eager": 400}).saving("kernels", 1600) == pytest.approx(-4)


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{", '{"net": 3}', '{"net": {"compile_seconds": "1", "images_per_s": 7}}', "[" * 100_000,
     '{"net": {"compile_seconds": -1, "images_per_s": {"eager": true, "kernels": 1e999}}}'],
)  # fmt: skip
def test_what_is_damaged_is_forgotten(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert look_up("net") == Seen()
    remember("net", "eager", images_per_s=5)
    assert look_up("net") == Seen(None, {"eager": 5})


def test_where_nothing_can_be_kept_nothing_happens(cache: Path) -> None:
    cache.parent.write_text("a file, no folder")
    remember("net", "eager", images_per_s=5)
    assert look_up("net") == Seen()
