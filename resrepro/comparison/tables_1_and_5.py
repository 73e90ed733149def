"""Table 1, the layers of the five ImageNet nets, and Table 5, the ensembles: tables of a form of their own.

Table 1 has the paper's form, with our multiply-adds beside its printed FLOPs. Table 5 has a row for each
ensemble of ours; the paper's errors are of the ILSVRC test set, whose labels are not public, ours of
validation images, so the two stand in columns of their own, without a difference.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from resrepro.comparison.groups import about_images, not_said_yet, runs_of, spell_data, unfinished
from resrepro.comparison.table import DASH, NONE, Notes, Row, Table, train_command
from resrepro.paper import published
from resrepro.records import FINISHED, Run
from resrepro.records.reading import Ensemble
from resrepro.spec import IMAGENET_DEPTHS, catalogue
from resrepro.spec.architecture import Architecture, Layer, Part, architectures

TITLE = "Table 1. Architectures for ImageNet"
UNIT = 1e9  # the paper gives FLOPs in 10^9
REMARKS = (
    "Layers, blocks and sizes: read off the nets as built, for images of 224x224. /2 is a stride of 2; "
    "the first block of conv3_x, conv4_x and conv5_x has one too.",
)
FLOPS = (
    "multiply-adds (Section 3.3) of every convolution and the fully connected layer, the projection "
    "shortcuts of option B (50 layers and more) among them; those of option A need none"
)
PARAMETERS = "of the convolutions, BN (scale and shift) and the fully connected layer"
ENSEMBLE_COLUMNS = ("ensemble", "nets", "protocol", "top-5 error: paper (test)", "ours (val)")
ENSEMBLE_COMMAND = "resrepro eval RUN RUN ... --ensemble --protocol multi_scale --data DIR"
SET = "val"


def table1_nets() -> dict[str, Architecture]:
    """The nets of Table 1 by the heading of their column (`50-layer`)."""
    return {f"{depth}-layer": architectures()[f"imagenet-resnet{depth}"] for depth in IMAGENET_DEPTHS}


def table_1() -> Table:
    """Table 1 from the layouts of the nets and the paper's printed FLOPs."""
    nets = table1_nets()
    printed = [published()["table1", heading, "flops"].value for heading in nets]
    counted = [net.multiply_adds for net in nets.values()]
    gaps, cut_off = [], []
    for heading, ours, paper in zip(nets, counted, printed, strict=True):
        gaps.append(f"{(ours - paper) / UNIT:+.2f}".replace("-", "−"))
        if f"{ours / UNIT:.1f}" != f"{paper / UNIT:.1f}":
            told = f"{heading}: {ours / UNIT:.2f} is {paper / UNIT:.1f} only when cut off, not rounded"
            cut_off.append(told)
    projecting = {heading: net for heading, net in nets.items() if net.projections}
    without = [f"{(net.multiply_adds - net.projections) / UNIT:.2f}" for net in projecting.values()]
    would = f"without projections {', '.join(projecting)} would have {', '.join(without)}"
    notes = Notes()
    above = notes.number([FLOPS, would])
    cut, below = notes.number(cut_off), notes.number([PARAMETERS])
    return Table(
        name="table1",
        title=TITLE,
        columns=("layer", "output", *nets),
        rows=(
            *_layer_rows(list(nets.values())),
            Row(("FLOPs, 1e9", "paper", *(f"{value / UNIT:.1f}" for value in printed))),
            Row(("FLOPs, 1e9", "ours", *(f"{value / UNIT:.2f}" for value in counted)), above),
            Row(("FLOPs, 1e9", "diff.", *gaps), cut),
            Row(("parameters", "ours", *(f"{net.parameters:,}" for net in nets.values())), below),
        ),
        notes=tuple(notes),
        remarks=REMARKS,
        records=tuple(_net_record(heading, net) for heading, net in nets.items()),
    )


def _layer_rows(nets: Sequence[Architecture]) -> Iterator[Row]:
    """The upper part: a block's layers below each other, as the paper stacks them, then their number."""
    conv1 = [net.layer("conv1") for net in nets]
    yield Row(("conv1", _side(conv1[0]), *(f"{_kernel(layer)} /{layer.stride}" for layer in conv1)))
    for number, stage in enumerate(nets[0].stages):
        stacks = [list(map(_kernel, net.stages[number].layers)) for net in nets]
        lines = list(itertools.zip_longest(*stacks, fillvalue=""))
        if number == 0:  # the pooling belongs to conv2_x
            pools = [net.layer("max pool") for net in nets]
            lines.insert(0, tuple(f"{pool.kernel}x{pool.kernel} max /{pool.stride}" for pool in pools))
        yield Row((stage.name, _side(stage), *lines[0]))
        yield from (Row(("", "", *line)) for line in lines[1:])
        yield Row(("", "blocks", *(f"x {net.stages[number].times}" for net in nets)))
    fc = [net.layer("fc") for net in nets]
    yield Row(("fc", _side(fc[0]), *("avg pool" for _ in fc)))
    yield Row(("", "", *(f"{layer.channels}-d fc" for layer in fc)))


def _side(part: Layer | Part) -> str:
    return f"{part.size}x{part.size}"


def _kernel(layer: Layer) -> str:
    return f"{layer.kernel}x{layer.kernel}, {layer.channels}"


def _net_record(heading: str, net: Architecture) -> dict[str, object]:
    """One net as raw numbers, under the names that the paper's numbers have in published.csv."""
    stages = {}
    for stage in net.stages:
        stages[f"blocks_{stage.name}"] = stage.times
        stages[f"width_{stage.name}"] = stage.width
        stages[f"out_channels_{stage.name}"] = stage.channels
        stages[f"output_size_{stage.name}"] = stage.size
    return {
        "net": heading,
        "layers": net.layers,
        "conv1_channels": net.layer("conv1").channels,
        "convs_per_block": len(net.stages[0].layers),
        **stages,
        "fc_outputs": net.layer("fc").channels,
        "parameters": net.parameters,
        "flops_paper": int(published()["table1", heading, "flops"].value),
        "flops": net.multiply_adds,
        "flops_of_projections": net.projections,
    }


def table_5(plan: Mapping[str, Any], runs: Sequence[Run], ensembles: Iterable[Ensemble]) -> Table:
    """The paper's ensembles and those of ours in which every net was trained to its end.

    `plan` is its entry in layouts.toml.
    """
    dataset = plan["members"][0].partition("-")[0]
    reasons = [(ensemble, _why_left_out(ensemble, dataset)) for ensemble in ensembles]
    ours = [ensemble for ensemble, reason in reasons if not reason]
    left_out = [f"the ensemble of {_spell_members(one)} ({reason})" for one, reason in reasons if reason]
    left_out += unfinished(runs_of(plan["members"], runs))
    exact = {run.experiment for run in runs if run.finished and run.paper_exact}
    lacking = [name for name in plan["members"] if name not in exact]
    untrained = [(catalogue.find(name).label, train_command(name)) for name in lacking]
    notes = Notes()
    rows: list[Row] = []
    records: list[dict[str, object]] = []
    for line in plan["rows"]:
        number = published()["table5", line["label"], "top5_err"]
        gap = DASH if line.get("ours") and not ours else ""
        rows.append(Row((line["label"], "", "", f"{number.value:.2f}", gap)))
        records.append(_ensemble_record(line["label"], number.value, None))
        for ensemble in ours if line.get("ours") else ():
            error, size = ensemble.errors[SET]["top5_err"], str(len(ensemble.members))
            cells = f"↳ ensemble of {size}", size, ensemble.protocol, "", f"{error:.2f}"
            rows.append(Row(cells, notes.number(_caveats(ensemble))))
            records.append(_ensemble_record(cells[0], None, ensemble))
    data = spell_data(ours[0].data.notices, ours[0].data.classes) if ours else spell_data()
    return Table(
        name=plan["name"],
        title=plan["title"].format(data=data),
        columns=ENSEMBLE_COLUMNS,
        rows=tuple(rows),
        notes=tuple(notes),
        missing=() if ours else (*untrained, ("ensemble", ENSEMBLE_COMMAND)),
        remarks=(*((f"Not in the table: {', '.join(left_out)}.",) if left_out else ()), *plan["remarks"]),
        records=tuple(records),
    )


def _why_left_out(ensemble: Ensemble, dataset: str) -> str:
    """Why an ensemble has no place in the table of ensembles on a dataset; empty if it has one."""
    if ensemble.data.name != dataset or SET not in ensemble.errors:
        return f"measured on {ensemble.data.name}"
    for member in ensemble.members:
        if member.status not in FINISHED:
            return f"{member.label} is {member.status} at iteration {member.iteration:,}"
    return ""


def _spell_members(ensemble: Ensemble) -> str:
    """`ResNet-34 (B) seed 0, ResNet-152 seeds 0 and 1`."""
    seeds: dict[str, list[str]] = {}
    for member in ensemble.members:
        seeds.setdefault(member.label, []).append(str(member.seed))
    return ", ".join(
        f"{label} seed{'s' if own[1:] else ''} {' and '.join(own)}" for label, own in seeds.items()
    )


def _caveats(ensemble: Ensemble) -> list[str]:
    """The members, and everything that must be said of them and of the data."""
    sentences = [_spell_members(ensemble)]
    for text in dict.fromkeys(text for member in ensemble.members for text in member.told):
        labels = dict.fromkeys(member.label for member in ensemble.members if text in member.told)
        every = all(text in member.told for member in ensemble.members)
        sentences.append(text if every else f"{', '.join(labels)}: {text}")
    data, size = ensemble.data, {SET: ensemble.data.images[SET]}
    sentences += not_said_yet(data.notices, data.classes, size, sentences)
    sentences += about_images(data.classes, size, sentences)
    if ensemble.bn_stats == "precise":
        sentences.append("BN statistics averaged over training batches")
    return list(dict.fromkeys(sentences))


def _ensemble_record(label: str, paper: float | None, ensemble: Ensemble | None) -> dict[str, object]:
    """One line of the CSV: raw numbers, NaN where there is none."""
    errors = ensemble.errors[SET] if ensemble else {}
    return {
        "ensemble": label,
        "members": _spell_members(ensemble) if ensemble else "",
        "n": len(ensemble.members) if ensemble else NONE,
        "protocol": ensemble.protocol if ensemble else "",
        "bn_stats": ensemble.bn_stats if ensemble else "",
        "top-5_error_paper_test": NONE if paper is None else paper,
        "top-5_error_ours_val": errors.get("top5_err", NONE),
        "top-1_error_ours_val": errors.get("top1_err", NONE),
        "departures": "; ".join(_caveats(ensemble)) if ensemble else "",
    }
