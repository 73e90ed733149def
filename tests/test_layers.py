"""The one-way street: training writes records, and what reads records knows nothing of torch.

Modules are assigned to layers by name; the imports are parsed, not run. A new module must be given a
layer here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "resrepro"
HEAVY = {"torch", "torchvision", "sklearn"}

# Each layer with its modules (or packages, with everything below them).
LAYERS = {
    "ground": (
        "architectures", "archive", "benchmark", "benchmark.contestants", "benchmark.results",
        "benchmark.work", "capacity", "catalogue", "disk", "durable", "environment", "errors", "files",
        "holders", "locking", "measured", "measurements", "memory", "pickles", "processes", "publishing",
        "queueing", "record_checks", "record_files", "recording", "records", "responses", "sbatch",
        "schedule", "seen", "specs",
    ),
    "training": (
        "assessment", "benchmark.calibration", "benchmark.child", "benchmark.ours", "benchmark.peak",
        "benchmark.timing", "benchmark.usual", "cadence", "checkpoint", "convolution", "data",
        "description", "device", "distributed", "earlier", "engines", "evaluation", "feeds", "folding",
        "foreign", "freezing",
        "held_out", "interrupts", "job", "jobs", "kernels", "measuring", "measuring_responses", "metrics",
        "modes", "nets", "normalisation", "optimizer", "plateau", "resuming", "spread", "subjects", "trainer",
        "training", "verification", "watching",
    ),
    "reading": (
        "architecture_figure", "architecture_table", "benchmark.chart", "benchmark.projection",
        "benchmark.report", "captions", "cells", "claims", "comparison", "ensembling", "exhibits", "goals",
        "lettering", "panels", "paper", "planning", "plotting", "power_table", "progress", "reporting",
        "responses_figure", "responses_table", "selection", "sheets", "significance", "statistics_table",
        "tables",
    ),
    # What lets child processes measure: it knows them by their answers only, never by an import.
    "asking": ("benchmark.children", "benchmark.contest", "costs", "estimates"),
    "view": ("cli.live", "cli.many", "cluster"),
    "top": ("", "__main__", "cli", "demonstration", "reproducing"),
}  # fmt: skip
# What a layer may import, anywhere in its modules; and what when it is itself imported.
MAY_IMPORT = {
    "ground": {"ground"},
    "training": {"ground", "training"},
    "reading": {"ground", "reading"},
    "asking": {"ground", "asking"},
    "view": {"ground", "training", "view"},
    "top": {"ground", "training", "reading", "asking", "view", "top"},
}
AT_ONCE = MAY_IMPORT | {"top": {"ground", "reading", "asking", "top"}}
TORCH_FREE = ("ground", "reading", "asking", "top")


def name_of(path: Path) -> str:
    """`data.batches` for resrepro/data/batches.py; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer_of(module: str) -> str | None:
    """The layer of a module, by its own name or that of the closest package it lies in."""
    layers = {name: layer for layer, names in LAYERS.items() for name in names}
    while module and module not in layers:
        module = module.rpartition(".")[0]
        if not module:  # the package itself vouches for nothing below it
            return None
    return layers[module]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_in(node: ast.AST, within: str, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names imported below a node, and whether only when a function is called."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                home = f"resrepro.{within}".rstrip(".").split(".")
                is_package = MODULES[within].name == "__init__.py"
                up = home[: len(home) - child.level + is_package]
                base = ".".join([*up, *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", inside_function) for alias in child.names)
        else:
            deeper = inside_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(child, within, deeper)


@cache
def imports_of(module: str) -> tuple[tuple[str, bool], ...]:
    return tuple(imports_in(ast.parse(MODULES[module].read_text(encoding="utf-8")), module))


def ours(imported: str) -> str | None:
    """The module of this package that a dotted name means, None if it is not of this package."""
    if imported.split(".")[0] != "resrepro":
        return None
    name = imported.removeprefix("resrepro").removeprefix(".")
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module), f"resrepro.{module} is in no layer: add it to LAYERS in {Path(__file__).name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_layers_before_it(module: str) -> None:
    layer = layer_of(module) or ""
    for imported, _ in imports_of(module):
        target = ours(imported)
        if target:  # `from resrepro import build_net` (the empty name) would be caught below
            assert layer_of(target) in MAY_IMPORT[layer], f"resrepro.{module} imports {imported}"
        elif target == "" and layer != "top":
            pytest.fail(f"resrepro.{module} imports {imported}: name the module that it comes from")


@pytest.mark.parametrize("module", [name for name in MODULES if layer_of(name) in TORCH_FREE])
def test_a_torch_free_module_loads_nothing_that_imports_torch(module: str) -> None:
    layer = layer_of(module) or ""
    for imported, only_when_called in imports_of(module):
        if layer != "top" or not only_when_called:
            assert imported.split(".")[0] not in HEAVY, f"resrepro.{module} imports {imported}"
        target = ours(imported)
        if target and not only_when_called:
            assert layer_of(target) in AT_ONCE[layer], f"resrepro.{module} imports {imported} when loaded"


def test_the_parser_sees_the_imports_that_are_there() -> None:
    found = dict(imports_of("trainer"))
    assert found["torch"] is False
    assert found["resrepro.nets.net_of"] is False
    assert dict(imports_of("data"))["resrepro.data.cifar10.load_cifar10"] is True
    assert "pandas" in dict(imports_of("records"))
    assert (ours("resrepro.nets.net_of"), ours("resrepro.data.Images"), ours("torch.nn")) == (
        "nets",
        "data",
        None,
    )


def test_records_catalogue_and_all_that_reads_them_load_without_torch() -> None:
    names = [f"resrepro.{m}".rstrip(".") for m in MODULES if layer_of(m) in TORCH_FREE and m != "__main__"]
    assert {"resrepro.records", "resrepro.catalogue"} <= set(names)
    looked_for = [*sorted(HEAVY), "resrepro.training"]
    program = f"import sys, {', '.join(names)}\nprint([m for m in {looked_for} if m in sys.modules])"
    call = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert call.returncode == 0, call.stderr
    assert call.stdout.strip() == "[]"
