"""The runs that a claim is judged on: of each net one cell, of all nets one protocol.

A verdict never mixes protocols: runs on the paper's data over its 64,000 iterations, shortened ones, runs on
digits each get their own. Untrained, unfinished and diverged runs count nowhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resrepro import catalogue
from resrepro.cells import Cell
from resrepro.claims.entries import Net
from resrepro.records import Run
from resrepro.selection import FREE_SETTINGS, iterations_of, protocol_of
from resrepro.specs import FAMILIES, Spec, recipe_from_json, spell

STAND_INS = {"cifar10": "digits", "imagenet": "folder"}  # other images for the nets of a dataset
DATASET_NAMES = {
    "cifar10": "CIFAR-10", "digits": "digits", "imagenet": "ImageNet", "folder": "folder of images",
}  # fmt: skip
FAST = "fast"


@dataclass(frozen=True)
class Protocol:
    """The runs of one protocol, by the nets of a claim; a net without runs is missing.

    Of a net that has several cells under the protocol (sampled more often, say) it has the one of most seeds.
    """

    cells: Mapping[Net, Cell]

    @property
    def first(self) -> Run:
        """Any of its runs, for what they share."""
        return next(iter(self.cells.values())).first

    @property
    def own_data(self) -> bool:
        """Whether the images are of the paper's dataset."""
        return self.first.spec["dataset"] in STAND_INS

    @property
    def full_length(self) -> bool:
        """Whether it is at least as long as the paper's schedule."""
        return iterations_of(self.first) >= catalogue.paper_recipe(self.first.family).recipe.iterations

    @property
    def exact(self) -> bool:
        """Whether it is the paper's own."""
        own_settings = all(cell.exact or net.settings for net, cell in self.cells.items())
        return self.own_data and own_settings

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
        hidden = {"iterations", *FREE_SETTINGS, *(("precision",) if run.env["mode"] == FAST else ())}
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

    def command(self, net: Net, seeds: int) -> str:
        """The command that trains so many seeds of a net under this protocol; finished ones are kept."""
        own = _spec_of(self.first)
        changes = {key: value for key, value in own.changes if key not in ("shortcut", *FREE_SETTINGS)}
        fast = self.first.env["mode"] == FAST and bool(changes.pop("precision", None))
        name = net.experiment
        if not self.own_data:
            dataset, _, rest = name.partition("-")
            name = f"{STAND_INS[dataset]}-{rest}"
        spec = catalogue.derive(catalogue.find(name), None, **{**changes, **dict(net.settings)})
        return with_seeds(catalogue.command_for(spec) + (" --fast" if fast else ""), seeds)


def with_seeds(command: str, seeds: int) -> str:
    """A training command for seeds 0, 1, and so on."""
    return command + (f" --seeds 0-{seeds - 1}" if seeds > 1 else "")


def paper_command(net: Net, seeds: int) -> str:
    """The command that trains so many seeds of a net as the paper did."""
    return with_seeds(catalogue.command_for(net.spec), seeds)


def protocols_of(nets: Sequence[Net], runs: Iterable[Run]) -> list[Protocol]:
    """The protocols under which there are runs of some nets, the one that says most of them first."""
    members: dict[tuple[Net, tuple[str, str, str]], list[Run]] = {}
    for run in runs:
        for net in nets:
            if run.finished and is_of(run, net):
                members.setdefault((net, run.cell), []).append(run)
    groups: dict[str, dict[Net, list[Cell]]] = {}
    for (net, _), found in sorted(members.items(), key=lambda item: item[0][1]):
        if _is_understood(found[0]):
            cell = Cell(tuple(sorted(found, key=lambda run: run.seed)))
            groups.setdefault(protocol_of(cell.first), {}).setdefault(net, []).append(cell)
    protocols = [
        Protocol({net: max(group[net], key=_size) for net in nets if net in group})
        for group in groups.values()
    ]
    return sorted(protocols, key=lambda protocol: (protocol.support, protocol.name), reverse=True)


def _size(cell: Cell) -> tuple[bool, int]:
    return cell.first.exact, len(cell.runs)


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

    The shortcuts and the warm-up belong to the net, and so do the settings that it names.
    """
    dataset, _, rest = net.experiment.partition("-")
    if run.experiment not in (net.experiment, f"{STAND_INS.get(dataset, dataset)}-{rest}"):
        return False
    own = catalogue.find(run.experiment).spec()
    wanted = dict(net.settings)
    if "warmup_lr" not in wanted:
        wanted["warmup_lr"] = own.recipe.warmup_lr
    recipe = run.spec["recipe"]
    same = all(recipe.get(key) == value for key, value in wanted.items())
    return same and run.spec["shortcut"] == own.shortcut and FAMILIES[dataset] == run.family
