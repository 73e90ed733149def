"""`resrepro train` and `resrepro publish`."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from resrepro import cli
from resrepro.cli import argument, option, recipe_option
from resrepro.cli.status import show_plan
from resrepro.cli.view import EventView, RunsView, raise_failures, tell, train_all
from resrepro.errors import UsageError
from resrepro.launch import Plan, Step, Wanted, option_words, pool_for, step_of, train_words
from resrepro.launch.local import EVENTS, Job, prepare_images
from resrepro.spec import catalogue, in_folder
from resrepro.spec.recipe import FAMILIES, Value
from resrepro.training import is_first, world_size

# Options that a run's command takes from that for several; those for the recipe are told by --set.
PASSED_ON = (
    "shortcut", "data", "device", "threads", "fast", "micro_batch", "checkpoint_every", "break_lock", "fresh",
    "engine", "workers", "max_bad_images",
)  # fmt: skip
STRIDE = "A bottleneck's stride on its 3x3 instead of its first 1x1."
ENGINES = "auto|eager|kernels|graph|lanes"
ENGINE = "How updates are computed: lanes, graph (NVIDIA GPUs), kernels (CPUs with a C compiler), eager."
EVERY = "Iterations or minutes between checkpoints, or both. (default: under 1 % of time)"
NAMES = "Names as in `resrepro list`."
DATASET = "cifar10, digits, imagenet, or folder: photographs of your own."
SIDE = "Photographs: side of a crop instead of 224; scales in proportion."
GROUP = "Images that share BN statistics; 0: the whole batch."
STATISTICS = "Photographs, BN at test: running, or precise (plain averages over batches)."
PASS = "Images per pass; gradients of several passes are accumulated. (default: all)"
LOCK = "Take over a run whose process on another machine has ended."

FreshOption = Annotated[bool, option("Set an existing run aside (it is kept) and start anew.", "--fresh")]


@cli.app.command(rich_help_panel="Run")
def train(
    ctx: typer.Context,
    experiments: Annotated[list[str] | None, argument(NAMES, "EXPERIMENT...")] = None,
    depth: cli.DepthOption = None,
    plain: Annotated[bool, option("Without shortcuts.", "--plain")] = False,
    shortcut: Annotated[str | None, option("Shortcut option A, B or C. (default: the paper's)")] = None,
    dataset: Annotated[str, typer.Option(help=DATASET)] = "cifar10",
    seed: Annotated[int | None, option("Seed. (default: 0)")] = None,
    seeds: Annotated[str | None, option("So many seeds, or these, one run each.", metavar="N|0-4")] = None,
    iterations: cli.IterationsOption = None,
    batch_size: Annotated[int | None, cli.whole_option("Images per batch.")] = None,
    split: cli.SplitOption = None,
    image_size: Annotated[int | None, recipe_option(SIDE)] = None,
    bn_group: Annotated[int | None, recipe_option(GROUP)] = None,
    bn_stats: Annotated[str | None, recipe_option(STATISTICS)] = None,
    stride_3x3: Annotated[bool | None, recipe_option(STRIDE, "--stride-3x3")] = None,
    precision: Annotated[str | None, recipe_option("float32, tf32, bf16 or fp16.")] = None,
    eval_every: Annotated[int | None, cli.whole_option("Iterations between samples; 0: an epoch.")] = None,
    settings: cli.SettingsOption = None,
    data: cli.DataOption = None,
    device: cli.DeviceOption = "auto",
    threads: cli.ThreadsOption = None,
    fast: cli.FastOption = False,
    engine: Annotated[str, typer.Option(metavar=ENGINES, rich_help_panel="Speed", help=ENGINE)] = "auto",
    jobs: cli.JobsOption = None,
    micro_batch: Annotated[int | None, option(PASS)] = None,
    workers: cli.WorkersOption = None,
    max_bad_images: cli.MaxBadOption = None,
    launcher: cli.LauncherOption = "local",
    slurm: cli.SlurmOption = None,
    runs: cli.RunsOption = Path("runs"),
    checkpoint_every: Annotated[str | None, option(EVERY, metavar="500|10m")] = None,
    break_lock: Annotated[bool, option(LOCK, "--break-lock")] = False,
    fresh: FreshOption = False,
    dry_run: Annotated[bool, option("Only tell what time and disk the runs will take.", "--dry-run")] = False,
    quiet: cli.QuietOption = False,
    as_json: cli.JsonOption = False,
) -> None:
    """Train nets as the paper did; the same command continues an interrupted run.

    Example: resrepro train --depth 56 --plain
    """
    changed = cli.changed_settings(ctx.params)
    slurm_options = cli.parse_slurm(slurm, launcher)
    options = {"runs": runs} | {name: ctx.params[name] for name in PASSED_ON}
    if fast and (dry_run or launcher == "slurm"):
        changed["precision"], options["fast"] = cli.precision_of_fast(device, launcher), False
    wanted = _wanted(ctx.params, changed)
    if dry_run:
        _forecast(wanted, options)
    elif launcher == "slurm":
        prepare_images([spec for spec, _ in wanted], data)  # downloaded once, not by every job
        words = option_words(changed, **options)
        queued = [(spec.name, number, train_words(spec, number, words)) for spec, number in wanted]
        submit_runs(queued, runs, slurm_options, threads)
    elif len(wanted) > 1 and world_size() == 1 and EVENTS not in os.environ:
        _train_several(wanted, jobs, options, changed)
    else:
        _train_here(wanted, options | changed)


def _wanted(given: Mapping[str, Any], changed: Mapping[str, Value]) -> Wanted:
    """What was asked for, by names of experiments or depths of nets, each once, with each of the seeds."""
    names, dataset, plain, shortcut = (given[key] for key in ("experiments", "dataset", "plain", "shortcut"))
    bare = all(catalogue.full_name(name) != catalogue.full_name(name, "") for name in names or ())
    if names and (plain or (dataset != "cifar10" and not bare)):
        raise UsageError(
            "an experiment's name already says dataset and kind: leave --plain and --dataset out."
        )
    chosen = [catalogue.find(catalogue.full_name(name, dataset)) for name in names or ()]
    depths = cli.parse_numbers(given["depth"], cli.DEPTHS)
    chosen += [catalogue.experiment_for(dataset, depth, plain, shortcut) for depth in depths]
    if not chosen:
        depth = 18 if FAMILIES.get(dataset) == "imagenet" else 20
        raise UsageError(
            f"which net? Give --depth (say --depth {depth}), or a name that `resrepro list` shows."
        )
    if given["seed"] is not None and given["seeds"] is not None:
        raise UsageError("--seed takes one seed and --seeds several, such as 0-4: give one of the two.")
    seeds = [given["seed"] or 0] if given["seeds"] is None else cli.parse_seeds(given["seeds"])
    specs = dict.fromkeys(catalogue.derive(each, shortcut, **changed) for each in chosen)
    return [(spec, seed) for spec in specs for seed in seeds]


def _prepare(options: dict[str, Any]) -> None:
    """Turn options of the command line into those of `training.session.train`."""
    from resrepro.data.loader import Loading
    from resrepro.training.engine import choose_device, keep_memory

    options["loading"] = Loading(options.pop("workers"), options.pop("max_bad_images") or 0)
    if choose_device(options["device"]).type == "cpu":
        keep_memory()


def _train_here(wanted: Wanted, options: dict[str, Any]) -> None:
    """Train in this process, under torchrun several runs in turn, and show or tell it."""
    from resrepro.training.session import train as train_one

    if EVENTS in os.environ:
        return _train_unseen(wanted, options, int(os.environ[EVENTS]))
    _prepare(options)
    jobs = [Job(spec.experiment, seed, ()) for spec, seed in wanted]
    view = RunsView(jobs, Console(highlight=False, quiet=not is_first()))
    with view.live:
        for job in jobs:
            watcher = EventView(partial(view.hear, job))
            folder = train_one(job.run, job.seed, watcher=watcher, **options)
            if is_first():
                watcher.tell("finish", folder=str(folder))


def _train_several(
    wanted: Wanted, jobs: int | None, options: dict[str, Any], changed: Mapping[str, Value]
) -> None:
    """Train several runs, as many at once as there is room for, by commands of their own."""
    how = (options[name] for name in ("device", "engine", "micro_batch", "fast"))
    pool = pool_for(wanted, option_words(changed, **options), jobs, *how)
    prepare_images([spec for spec, _ in wanted], options["data"])
    failed = train_all(pool, RunsView(pool.jobs), " without --fresh" if options["fresh"] else "")
    if len(failed) == len(wanted) and {outcome.code for outcome in failed.values()} == {UsageError.exit_code}:
        raise UsageError(failed[pool.jobs[0]].sentence)
    raise_failures({str(job): end.sentence for job, end in failed.items()}, f" of {len(wanted)} runs")


def _train_unseen(wanted: Wanted, options: dict[str, Any], parent: int) -> None:
    """Train runs that share this process, and tell the process `parent` of each."""
    from resrepro.training.engine import threads_used
    from resrepro.training.session import Session, train_side_by_side

    _prepare(options)
    threads, views = options.pop("threads"), {}
    for spec, seed in wanted:
        view = EventView(parent=parent, run=str(Job(spec.experiment, seed, ())))
        views[Session(spec.experiment, seed, watcher=view, **options)] = view
    with threads_used(threads):
        for session, error in train_side_by_side(list(views)):
            if error:
                views[session].tell("fail", code=error.exit_code, sentence=str(error))
            else:
                views[session].tell("finish", folder=str(session.folder))


def submit_runs(
    wanted: Sequence[tuple[Any, ...]], runs: Path, slurm: Mapping[str, str], threads: int | None
) -> None:
    """Hand runs, each as the fields of a QueuedRun, to the cluster's queue; prints the job of each."""
    from resrepro.launch.slurm import QueuedRun, submit

    for queued, number, before in submit([QueuedRun(*each) for each in wanted], runs, slurm, threads):
        there = "" if before is None else "waiting" if before.state == "PENDING" else "running"
        print(f"{queued}: job {number}" + (f" ({there} already)" if there else ""))
        tell(run=queued.run, seed=queued.seed, job=number, there=there)
    print(f"Next: {in_folder('resrepro status', runs)}")


def _forecast(wanted: Wanted, options: Mapping[str, Any]) -> None:
    """Show what the runs will take, less what is done already; nothing is written."""
    steps = [step_of(options["runs"], spec, seed) for spec, seed in wanted]
    if options["fresh"]:
        steps = [Step(step.spec, step.seed, step.folder, "start") for step in steps]
    for step in steps:
        tell(record=str(step.folder), seed=step.seed, state=step.state, iteration=step.done)
    show_plan(Plan(options["runs"], tuple(steps)), options["device"], Console(highlight=False))


@cli.app.command(rich_help_panel="Run")
def publish(
    records: Annotated[list[Path], argument("Run folders, finished, or files of runs/ensembles.", "RUN...")],
    results: Annotated[Path, cli.folder_option(help="Where to.")] = Path("results"),
) -> None:
    """Copy finished records to a folder that one commits, of full-length runs with their weights."""
    from resrepro.evaluation.weights import write_weights
    from resrepro.records import collection, read_run

    runs = [read_run(record) for record in records if not record.is_file()]
    copies = [collection.publish(run, results) for run in runs]
    for run, copy in zip(runs, copies, strict=True):
        write_weights(run, copy)
    copies += [collection.publish_ensemble(record, results) for record in records if record.is_file()]
    for copy in copies:
        print(f"Published to {copy}")
