"""The runs of a claim's nets, and the commands that make more of them. Nothing here imports torch."""

from collections.abc import Iterable

from resrepro.claims.entries import Claim, Net
from resrepro.comparison.groups import FREE_SETTINGS, STAND_INS, WARM_UP, Protocol, protocols_of, with_seeds
from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.experiment import command_for
from resrepro.spec.recipe import FAMILIES


def protocols_for(claim: Claim, runs: Iterable[Run], sampled: bool) -> list[Protocol[Net]]:
    """The protocols under which a claim can be judged, the one that is judged first first.

    The longest under which all nets that it compares stand, else that of most nets. Runs of one protocol may
    differ in how often they are sampled, unless a test depends on it (`sampled`).
    """
    known = list(runs)
    members = {net: [run for run in known if is_of(run, net)] for net in claim.nets}
    return protocols_of(members, len(claim.nets), WARM_UP if sampled else FREE_SETTINGS)


def paper_command(net: Net, seeds: int) -> str:
    """The command that trains so many seeds of a net as the paper did."""
    return with_seeds(command_for(net.spec), seeds)


def command_under(protocol: Protocol[Net], net: Net, seeds: int) -> str:
    """The command that trains so many seeds of a net under a protocol; finished ones are kept."""
    return protocol.command(net.experiment, dict(net.settings), seeds)


def caveats(protocol: Protocol[Net]) -> str:
    """What must be said beside a verdict on it; empty for the paper's own."""
    quantities = [{"set": protocol.held_out}]
    groups = protocol.groups.values()
    sentences = dict.fromkeys(text for group in groups for text in group.caveats(quantities))
    lead = "About the shortened protocol" if protocol.first.status == "shortened" else "About this protocol"
    return f"{lead} ({protocol.name}): {'; '.join(sentences)}." if sentences else ""


def left_out_told(protocol: Protocol[Net]) -> str:
    """Which seeds have no part in a verdict on it, with their status; empty if there are none."""
    told = [
        f"{net.label} seed {run.seed} ({run.status} at iteration {run.result['iteration']:,})"
        for net, runs in protocol.left_out.items()
        for run in runs
    ]
    return f"Left out: {', '.join(told)}." if told else ""


def is_exact(protocol: Protocol[Net]) -> bool:
    """Whether it is the paper's own: its specification of each net, in default mode, on official data."""
    return all(
        run.digest == net.spec.digest and run.env["mode"] == "default" and not run.result["notices"]
        for net, group in protocol.groups.items()
        for run in group.runs
    )


def is_of(run: Run, net: Net) -> bool:
    """Whether a run is one of a net, on whichever images and however long.

    The shortcuts and the whole warm-up belong to the net, and so do the settings that it names.
    """
    dataset, _, rest = net.experiment.partition("-")
    if run.experiment not in (net.experiment, f"{STAND_INS.get(dataset, dataset)}-{rest}"):
        return False
    own = catalogue.find(run.experiment).spec()
    wanted = {key: getattr(own.recipe, key) for key in WARM_UP} | dict(net.settings)
    recipe = run.spec["recipe"]
    same = all(recipe.get(key) == value for key, value in wanted.items())
    return same and run.spec["shortcut"] == own.shortcut and FAMILIES[dataset] == run.family
