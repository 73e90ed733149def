"""`resrepro demo`: the paper's point in minutes, offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.options import DeviceOption, ThreadsOption
from resrepro.cli.reproduce import Reproduction, tell_failures, write_exhibit

if TYPE_CHECKING:
    from resrepro.records.collection import Collection

DEMO = ("digits-plain20", "digits-plain56", "digits-resnet20", "digits-resnet56")


@app.command(rich_help_panel="Run")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the runs, the table and the figure.")
    ] = Path("demo"),
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set earlier demo runs aside and train anew.")
    ] = False,
) -> None:
    """Train plain and residual nets of 20 and 56 layers on bundled digits and show what happens.

    It is `resrepro reproduce demo`, in a folder of its own.
    """
    from resrepro.launch import choose_exhibits

    exhibits, console = choose_exhibits(["demo"]), Console(highlight=False)
    reproduction = Reproduction(exhibits, out / "runs", device=device, threads=threads, fresh=fresh)
    reproduction.train()
    found = reproduction.plan().records()
    write_exhibit(exhibits[0], found, out, out, console)
    console.print(f"\n{demo_verdict(found)}", style="bold", markup=False)
    console.print("Next: resrepro train --depth 20        (CIFAR-10, as in the paper)", markup=False)
    tell_failures(reproduction, Console(stderr=True, highlight=False))


def demo_verdict(found: "Collection") -> str:
    """What the demo's runs show about degradation (the paper's Figure 1), computed from their records.

    Only the paper's contrast is looked at: training error of 20 against 56 layers, plain and residual.
    """
    errors = {run.experiment: run.last("train") for run in found.runs if run.finished}
    if missing := [name for name in DEMO if errors.get(name) is None]:
        return f"No verdict: {', '.join(missing)} did not finish."
    plain20, plain56, resnet20, resnet56 = (errors[name] or 0.0 for name in DEMO)
    plain = f"the plain net goes from {plain20:.1f} % training error at 20 layers to {plain56:.1f} % at 56"
    residual = f"the residual net from {resnet20:.1f} % to {resnet56:.1f} %"
    if plain56 > plain20 and plain56 - plain20 > resnet56 - resnet20:
        cured = "and shortcuts cure it" if resnet56 <= resnet20 + 1 else "and shortcuts lessen it"
        return f"Depth degrades the plain net {cured}: {plain}, {residual} (one seed, digits)."
    return f"These runs do not show the paper's degradation: {plain}, {residual} (one seed, digits)."
