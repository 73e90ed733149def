"""What the documentation shows must exist and parse; the public names, and what importing them costs."""

import importlib.metadata
import inspect
import pkgutil
import re
import shlex

import pytest
import typer
from conftest import ROOT

import resrepro
from resrepro.cli import app

README = ROOT / "README.md"
PAGES = {page: page.read_text(encoding="utf-8") for page in (README, *sorted(ROOT.glob("docs/*.md")))}
COMMANDS = typer.main.get_command(app).commands


def shown_commands():
    """Every `resrepro ...` line of the pages' code blocks and code spans, and what `torchrun` starts."""
    lines = []
    for text in (page.replace("\\\n", " ") for page in PAGES.values()):
        blocks = re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.S)
        lines += [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
        lines += [" ".join(span.split()) for span in re.findall(r"`(resrepro [^`]+)`", text)]
    lines = [re.sub(r"^torchrun .* -m resrepro ", "resrepro ", line) for line in lines]
    return sorted({line for line in lines if line.startswith("resrepro ")})


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_in_the_readme_parses(line):
    name, *words = shlex.split(line)[1:]
    command = COMMANDS[name]
    words = [re.sub(r"^(RUN|EXPERIMENT|EXHIBIT|CHECKPOINT)\b.*", "x", word) for word in words]
    assert command.make_context(name, words).command is command


def test_the_readme_shows_every_command():
    shown = {shlex.split(line)[1] for line in shown_commands()}
    assert shown >= set(COMMANDS)


def test_files_and_make_targets_that_the_readme_names_exist():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z]+)", PAGES[README], re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_no_page_names_a_folder_of_the_machine_that_it_was_written_on():
    place = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users)/")
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.json")]:
        assert not place.search(page.read_text(encoding="utf-8")), page


# --- the Python API --------------------------------------------------------------------------------


def test_the_public_names_are_these_and_all_are_documented():
    assert resrepro.__all__ == ["build_net", "compare", "evaluate", "load_net", "load_runs", "plot", "train"]
    for name in resrepro.__all__:
        thing = getattr(resrepro, name)
        assert inspect.isfunction(thing), name
        assert len(inspect.getdoc(thing)) > 60
        assert name in dir(resrepro)


def test_importing_every_submodule_leaves_the_public_names_alone():
    for module in pkgutil.walk_packages(resrepro.__path__, "resrepro."):
        module.name.endswith("__main__") or importlib.import_module(module.name)
    assert all(inspect.isfunction(getattr(resrepro, name)) for name in resrepro.__all__)


def test_the_version_is_that_of_the_package():
    assert resrepro.__version__ == importlib.metadata.version("resrepro")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        resrepro.frobnicate  # noqa: B018
