"""The runs that a claim is judged on: of each net one cell, of all nets one protocol.

A verdict never mixes protocols: runs on the paper's data over its 64,000 iterations, shortened ones, runs on
digits each get their own. Unfinished and diverged runs have no last error; they are told, as left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from resrepro.claims.entries import Net
from resrepro.comparison.cells import Cell
from resrepro.comparison.selection import FREE_SETTINGS, WARM_UP, iterations_of, protocol_of
from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.specs import FAMILIES, IMAGENET_IMAGES, Spec, recipe_from_json, spell

STAND_INS = {"cifar10": "digits", "imagenet": "folder"}  # other images for the nets of a dataset
DATASET_NAMES = {
    "cifar10": "CIFAR-10", "digits": "digits", "imagenet": "ImageNet", "folder": "folder of images",
}  # fmt: skip
WHOLE = {"cifar": {"train": 50_000, "test": 10_000}, "imagenet": IMAGENET_IMAGES}  # images by set
FAST = "fast"


@dataclass(frozen=True)
class Protocol:
    """The runs of one protocol, by the nets of a claim; a net without runs is missing.

    Of a net that has several cells under the protocol (sampled more often, say) it has the one of most seeds.
    """

    cells: Mapping[Net, Cell]
    left_out: Mapping[Net, tuple[Run, ...]] = field(default_factory=dict)
    """Further seeds of these cells, and of missing nets, that are unfinished or diverged."""
    free: tuple[str, ...] = FREE_SETTINGS
    """The settings in which its nets may differ."""

    @property
    def first(self) -> Run:
        """Any of its runs, for what they share."""
        return next(iter(self.cells.values())).first

    @property
    def own_data(self) -> bool:
        """Whether the images are of the paper's dataset."""
        return self.first.spec["dataset"] in STAND_INS

    @property
    def whole_data(self) -> bool:
        """Whether the paper's sets are all there: trained on the one, measured on the other, all official."""
        run = self.first
        about = run.env["data"]["images"]
        return self.own_data and about == WHOLE[run.family] and not run.result["notices"]

    @property
    def full_length(self) -> bool:
        """Whether it is at least as long as the paper's schedule."""
        return iterations_of(self.first) >= catalogue.paper_recipe(self.first.family).recipe.iterations

    @property
    def exact(self) -> bool:
        """Whether it is the paper's own: its specification of each net, in default mode, on official data."""
        return all(
            run.digest == net.spec.digest and run.env["mode"] == "default" and not run.result["notices"]
            for net, cell in self.cells.items()
            for run in cell.runs
        )

    @property
    def support(self) -> tuple[bool, bool, int, int, int, int, int]:
        """How much it has to say of a claim: the paper's own first, then its data, nets, seeds, length.

        Whether it speaks for or against the claim plays no part.
        """
        counts = [len(cell.runs) for cell in self.cells.values()]
        changes = self.first.name.count("+")
        seeds = min(min(counts), 2)
        return (
            self.exact, self.own_data, len(counts), seeds, iterations_of(self.first), sum(counts), -changes,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """`CIFAR-10, 2,000 of 64,000 iterations, split 45k5k, fast`, in short what sets it apart."""
        run = self.first
        own = catalogue.find(run.experiment).spec().recipe
        parts = [DATASET_NAMES[str(run.spec["dataset"])]]
        if iterations_of(run) != own.iterations:
            parts.append(f"{iterations_of(run):,} of {own.iterations:,} iterations")
        hidden = {"iterations", *self.free, *(("precision",) if run.env["mode"] == FAST else ())}
        parts += [f"{key} {spell(value)}" for key, value in _spec_of(run).changes if key not in hidden]
        if run.env["mode"] != "default":
            parts.append(str(run.env["mode"]))
        return ", ".join(parts)

    @property
    def told(self) -> str:
        """What must be said beside a verdict on it; empty for the paper's own."""
        sentences = dict.fromkeys(text for cell in self.cells.values() for text in cell.told())
        if self.exact and not sentences:
            return ""
        lead = "About the shortened protocol" if self.first.status == "shortened" else "About this protocol"
        return f"{lead} ({self.name}): {'; '.join(sentences)}." if sentences else ""

    @property
    def left_out_told(self) -> str:
        """Which seeds have no part in a verdict on it, with their status; empty if there are none."""
        told = [
            f"{net.label} seed {run.seed} ({run.status} at iteration {run.result['iteration']:,})"
            for net, runs in self.left_out.items()
            for run in runs
        ]
        return f"Left out: {', '.join(told)}." if told else ""

    def spec_of(self, net: Net) -> Spec:
        """What a run of a net under this protocol trains."""
        own = _spec_of(self.first)
        changes = {key: value for key, value in own.changes if key not in ("shortcut", *self.free)}
        name = net.experiment
        if not self.own_data:
            dataset, _, rest = name.partition("-")
            name = f"{STAND_INS[dataset]}-{rest}"
        return catalogue.derive(catalogue.find(name), None, **{**changes, **dict(net.settings)})

    def command(self, net: Net, seeds: int) -> str:
        """The command that trains so many seeds of a net under this protocol; finished ones are kept."""
        spec = self.spec_of(net)
        others = tuple((key, value) for key, value in spec.changes if key != "precision")
        if self.first.env["mode"] == FAST and others != spec.changes:
            return with_seeds(f"{catalogue.command_for(replace(spec, changes=others))} --fast", seeds)
        return with_seeds(catalogue.command_for(spec), seeds)


def with_seeds(command: str, seeds: int) -> str:
    """A training command for seeds 0, 1, and so on."""
    return command + (f" --seeds 0-{seeds - 1}" if seeds > 1 else "")


def paper_command(net: Net, seeds: int) -> str:
    """The command that trains so many seeds of a net as the paper did."""
    return with_seeds(catalogue.command_for(net.spec), seeds)


def protocols_of(
    nets: Sequence[Net], runs: Iterable[Run], free: tuple[str, ...] = FREE_SETTINGS
) -> list[Protocol]:
    """The protocols under which there are finished runs of some nets, the one that says most of them first.

    `free` are the settings in which runs of one protocol may differ.
    """
    groups: dict[str, dict[Net, dict[tuple[str, str, str], list[Run]]]] = {}
    for run in runs:
        for net in nets:
            if is_of(run, net) and _is_understood(run):
                group = groups.setdefault(protocol_of(run, free), {})
                group.setdefault(net, {}).setdefault(run.cell, []).append(run)
    found = [_protocol({net: group[net] for net in nets if net in group}, free) for group in groups.values()]
    protocols = [protocol for protocol in found if protocol.cells]
    return sorted(protocols, key=lambda protocol: (protocol.support, protocol.name), reverse=True)


def _protocol(
    group: Mapping[Net, Mapping[tuple[str, str, str], Sequence[Run]]], free: tuple[str, ...]
) -> Protocol:
    """The largest cell of each net that has a finished run, and what is left out beside it."""
    cells: dict[Net, Cell] = {}
    left_out: dict[Net, tuple[Run, ...]] = {}
    for net, members in group.items():
        ordered = [tuple(sorted(found, key=lambda run: run.seed)) for _, found in sorted(members.items())]
        finished = [tuple(run for run in found if run.finished) for found in ordered]
        if known := [Cell(found) for found in finished if found]:
            own = net.spec.digest
            cells[net] = max(known, key=lambda cell: (_is_own(cell.first, own), len(cell.runs)))
        others = [run for found in ordered for run in found if not run.finished]
        if net in cells:
            others = [run for run in others if run.cell == cells[net].first.cell]
        if others:
            left_out[net] = tuple(others)
    return Protocol(cells, left_out, free)


def _is_own(run: Run, digest: str) -> bool:
    """Whether a run is of the net as the paper trained it, or as its twin on other images is trained."""
    return run.exact or run.digest == digest


def _spec_of(run: Run) -> Spec:
    recipe = recipe_from_json(run.spec["recipe"])
    return catalogue.derive(catalogue.find(run.experiment), **vars(recipe))


def _is_understood(run: Run) -> bool:
    """Whether this version has the settings of a run; a record of another might not."""
    try:
        return _spec_of(run).recipe.iterations > 0
    except (TypeError, ValueError):
        return False


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
