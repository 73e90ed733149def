"""`resrepro train` and `resrepro publish`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.options import (
    MOST_SEEDS,
    BatchSizeOption,
    BnGroupOption,
    BnStatsOption,
    CompileOption,
    DataOption,
    DeviceOption,
    EvalEveryOption,
    FastOption,
    ImageSizeOption,
    IterationsOption,
    JobsOption,
    MaxBadOption,
    PrecisionOption,
    RunsOption,
    SettingsOption,
    SplitOption,
    Stride3x3Option,
    ThreadsOption,
    WorkersOption,
    loading_of,
    parse_seeds,
    parse_settings,
)
from resrepro.cli.queue import LauncherOption, SlurmOption, parse_slurm
from resrepro.errors import Diverged, UsageError
from resrepro.processes import is_first
from resrepro.spec.experiment import Spec, check_shortcut
from resrepro.spec.recipe import FAMILIES


@app.command(rich_help_panel="Run")
def train(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT...", help="Names as in `resrepro list`.", show_default=False),
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(
            "--depth", show_default=False,
            help="Weighted layers: 6n+2, on photographs 18, 34, 50, 101, 152; may be repeated.",
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without shortcuts.")] = False,
    shortcut: Annotated[
        str | None, typer.Option(help="Shortcut option A, B or C. (default: the paper's)", show_default=False)
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="cifar10, digits, imagenet, or folder: photographs of your own.")
    ] = "cifar10",
    seed: Annotated[int | None, typer.Option(help="Seed. (default: 0)", show_default=False)] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0-4", help="Several seeds, one run each.", show_default=False)
    ] = None,
    iterations: IterationsOption = None,
    batch_size: BatchSizeOption = None,
    split: SplitOption = None,
    image_size: ImageSizeOption = None,
    bn_group: BnGroupOption = None,
    bn_stats: BnStatsOption = None,
    stride_3x3: Stride3x3Option = False,
    precision: PrecisionOption = None,
    eval_every: EvalEveryOption = None,
    settings: SettingsOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fast: FastOption = False,
    compiling: CompileOption = "auto",
    jobs: JobsOption = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Images per pass; gradients of several passes are accumulated. (default: all)",
            show_default=False,
        ),
    ] = None,
    workers: WorkersOption = None,
    max_bad_images: MaxBadOption = None,
    launcher: LauncherOption = "local",
    slurm: SlurmOption = None,
    runs: RunsOption = Path("runs"),
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            metavar="500|10m",
            help="Iterations or minutes between checkpoints, or both. (default: under 1 % of time)",
            show_default=False,
        ),
    ] = None,
    break_lock: Annotated[
        bool, typer.Option("--break-lock", help="Take over a run whose process on another machine has ended.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an existing run aside (it is kept) and start anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what time, memory and disk the runs will take.")
    ] = False,
) -> None:  # fmt: skip
    """Train nets as the paper did; the same command continues an interrupted run.

    Example: resrepro train --depth 56 --plain
    """
    from resrepro.spec import catalogue

    chosen = [catalogue.find(name) for name in experiments or []]
    chosen += [catalogue.experiment_for(dataset, number, plain, shortcut) for number in depth or []]
    if not chosen:
        photos = FAMILIES.get(dataset) == "imagenet"
        raise UsageError(
            f"which net? Give --depth (say --depth {18 if photos else 20}), or a name that "
            "`resrepro list` shows."
        )
    if experiments and (plain or dataset != "cifar10"):
        raise UsageError(
            "an experiment's name already says dataset and kind: leave --plain and --dataset out."
        )
    if seed is not None and seeds is not None:
        raise UsageError("--seed and --seeds exclude each other.")
    if seeds is not None and seeds.strip().isdecimal():  # which `reproduce` takes for how many
        many = f"--seeds 0-{int(seeds) - 1}" if 1 < int(seeds) <= MOST_SEEDS else "--seeds 0-4"
        raise UsageError(f"--seeds {seeds}: say --seed {seeds} for that one, or {many} for several.")
    check_shortcut(plain, shortcut)
    changed = {
        "iterations": iterations, "batch_size": batch_size, "split": split, "image_size": image_size,
        "bn_group": bn_group, "bn_stats": bn_stats, "stride_3x3": stride_3x3 or None,
        "precision": precision, "eval_every": eval_every,
    }  # fmt: skip
    changed = {key: value for key, value in changed.items() if value is not None}
    extra = parse_settings(settings or [])
    sbatch = parse_slurm(slurm or [], launcher)
    if twice := changed.keys() & extra.keys():
        raise UsageError(f"{', '.join(sorted(twice))} is given twice, by its own option and by --set.")
    if fast and {"precision"} & (changed.keys() | extra.keys()):
        raise UsageError("--fast chooses the precision itself: leave one of the two out.")
    # Refuse before the first run starts, not after.
    specs = [catalogue.derive(experiment, shortcut, **changed, **extra) for experiment in chosen]
    all_seeds = parse_seeds(seeds) if seeds is not None else [seed or 0]
    reading = (workers, max_bad_images or 0)
    if dry_run:
        from resrepro.cli.forecast import forecast

        forecast(
            specs, all_seeds, data, {**changed, **extra}, runs=None if fresh else runs, jobs=jobs,
            shortcut=shortcut, device=device, threads=threads, fast=fast, compiling=compiling,
            micro_batch=micro_batch, loading=reading,
        )  # fmt: skip
        return
    _train_all(
        specs, all_seeds, jobs, reading, sbatch if launcher == "slurm" else None,
        shortcut=shortcut, data=data, runs=runs, device=device, threads=threads, fresh=fresh,
        fast=fast, compiling=compiling,
        micro_batch=micro_batch, arguments=sys.argv[1:],
        checkpoint_every=checkpoint_every, break_lock=break_lock,
        **changed, **extra,
    )  # fmt: skip


def _train_all(
    specs: list[Spec],
    seeds: list[int],
    jobs: int | None,
    reading: tuple[Any, ...],
    slurm: dict[str, str] | None,
    **options: Any,
) -> None:
    """Several runs in a cluster's queue, at once, or one after the other.

    A diverged one does not stop those after it.
    """
    if slurm is not None:
        from resrepro.cli.queue import submit_runs

        submit_runs(list(dict.fromkeys(specs)), seeds, jobs, reading, slurm, options)
        return
    from resrepro.launch.capacity import choose_jobs, this_machine

    machine = this_machine()
    together = [spec for spec in dict.fromkeys(specs) for _ in seeds]
    jobs = choose_jobs(jobs, together, options["device"], options["micro_batch"], machine)
    if jobs > 1:
        from resrepro.cli.many import train_at_once

        train_at_once(list(dict.fromkeys(specs)), seeds, jobs, machine, reading, options)
    else:
        names = [spec.experiment for spec in specs]
        _train_in_turn(names, seeds, loading=loading_of(*reading), **options)


def _train_in_turn(names: list[str], seeds: list[int], **options: Any) -> None:
    from resrepro.cli.live import LiveView
    from resrepro.training.engine import keep_memory
    from resrepro.training.session import train as train_one

    keep_memory()
    view = LiveView() if is_first() else LiveView(Console(quiet=True))
    failed: list[Diverged] = []
    for name in names:
        for seed in seeds:
            try:
                folder = train_one(name, seed, watcher=view, **options)
            except Diverged as error:
                failed.append(error)
                view.say(str(error))
                continue
            if is_first():
                view.finish(folder)
    if failed and len(names) * len(seeds) > 1:
        raise Diverged(f"{len(failed)} of {len(names) * len(seeds)} runs diverged; their records are kept.")
    if failed:
        raise typer.Exit(1)


@app.command(rich_help_panel="Run")
def publish(
    records: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, finished, or files of runs/ensembles."),
    ],
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Where to.")] = Path("results"),
) -> None:
    """Copy finished records to a folder that one commits, of full-length runs with their weights."""
    from resrepro.evaluation.weights import write_weights
    from resrepro.records import read_run
    from resrepro.records.publishing import publish as publish_run
    from resrepro.records.publishing import publish_ensemble

    runs = [read_run(record) for record in records if not record.is_file()]
    copies = [publish_run(run, results) for run in runs]
    for run, copy in zip(runs, copies, strict=True):
        write_weights(run, copy)
    copies += [publish_ensemble(record, results) for record in records if record.is_file()]
    for copy in copies:
        typer.echo(f"Published to {copy}")
