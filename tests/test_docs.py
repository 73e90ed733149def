"""What the documentation shows must exist and parse."""

import re
import shlex

import pytest
import typer
from conftest import ROOT

from resrepro.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = typer.main.get_command(app).commands


def shown_commands():
    """Every `resrepro ...` line of the pages' code blocks and code spans, and what `torchrun` starts."""
    lines = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
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
    context = command.make_context(name, words, resilient_parsing=False)
    assert context.command is command


def test_the_readme_shows_every_command():
    shown = {shlex.split(line)[1] for line in shown_commands()}
    assert shown >= set(COMMANDS)


def test_files_and_make_targets_that_the_readme_names_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_no_page_names_a_folder_of_the_machine_that_it_was_written_on():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.json")]:
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", page.read_text(encoding="utf-8")), (
            page
        )
