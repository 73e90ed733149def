"""The street: a package imports from the packages to its left; what reads records never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "resrepro"
STREET = (
    "errors", "machine", "spec", "paper", "records", "data", "nets", "training", "evaluation", "comparison",
    "claims", "figures", "report", "bench", "launch", "cli",
)  # fmt: skip
TORCH_FREE = {*STREET} - {"errors", "data", "nets", "training", "evaluation", "bench"}


def imports_of(path: Path) -> set[str]:
    """The packages of ours that a module imports, anywhere in it."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {node.module.split(".")[1] for node in found if (node.module or "").startswith("resrepro.")}


@pytest.mark.parametrize("package", STREET)
def test_a_package_imports_from_packages_to_its_left(package: str) -> None:
    place = PACKAGE / package
    for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        for other in imports_of(path) - {package}:
            assert STREET.index(other) < STREET.index(package), f"{path} imports {other}"


def test_what_reads_records_loads_without_torch() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
    names = [name for name in names if name.split(".")[1] in TORCH_FREE]
    program = f"import sys, {', '.join(names)}\nprint([m for m in ('torch', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
