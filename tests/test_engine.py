"""Engines, devices, threads, arithmetic and memory."""

import platform
import resource

import pytest
import torch
from ranks import in_ranks

from resrepro.errors import UsageError
from resrepro.nets.cpu import NoCompiler
from resrepro.spec import catalogue
from resrepro.training import engine
from resrepro.training.engine import (
    EAGER,
    ENGINES,
    GRAPH,
    KERNELS,
    LANES,
    arithmetic,
    choose_device,
    choose_engine,
    keep_memory,
    threads_used,
    use_precision,
)

# --- engines ---------------------------------------------------------------------------------------

CPU, GPU, APPLE = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """A machine whose kernels need no compiling."""
    monkeypatch.setattr(engine, "load_kernels", lambda: None)
    monkeypatch.setattr(engine, "trouble_with_kernels", lambda device, spec: "")


def broken():
    raise NoCompiler("no C compiler (cc) is installed here")


def chosen(
    choice, device=CPU, updates=1000, begun=None, precision="float32", net="cifar10-resnet20", micro=128
):
    """The engine, and what is said of it."""
    told = []
    spec = catalogue.derive(catalogue.find(net), None, precision=precision)
    return choose_engine(choice, device, spec, micro, updates, begun, told.append), told


@pytest.mark.parametrize(
    ("choice", "device", "updates", "engine"),
    [
        ("auto", CPU, 64_000, KERNELS), ("auto", CPU, 49, EAGER), ("auto", CPU, 50, KERNELS),
        ("auto", GPU, 1, GRAPH), ("auto", APPLE, 64_000, EAGER), ("kernels", CPU, 1, KERNELS),
        ("graph", GPU, 1, GRAPH), ("lanes", GPU, 1, LANES), ("eager", GPU, 64_000, EAGER),
        ("graph", CPU, 1, GRAPH),
    ],
)  # fmt: skip
def test_the_rule(choice, device, updates, engine):
    assert chosen(choice, device, updates) == (engine, [])


def test_a_missing_compiler_is_a_notice_unless_kernels_were_asked_for(monkeypatch):
    monkeypatch.setattr(engine, "load_kernels", broken)
    name, (told,) = chosen("auto")
    assert name == EAGER
    assert "the engine is eager, as no C compiler" in told
    with pytest.raises(UsageError, match="no C compiler"):
        chosen("kernels")
    with pytest.raises(UsageError, match="begun with the engine kernels, but no C compiler"):
        chosen("auto", begun=KERNELS)
    assert chosen("eager") == (EAGER, [])


@pytest.mark.parametrize("begun", ENGINES)
def test_a_run_keeps_the_engine_that_it_began_with(begun):
    for updates in (1, 64_000):
        assert chosen("auto", CPU, updates, begun) == (begun, [])
    other = EAGER if begun == KERNELS else KERNELS
    with pytest.raises(UsageError, match=f"begun with the engine {begun}.*--fresh"):
        chosen(other, begun=begun)


@pytest.mark.parametrize(
    ("engine", "device", "told"),
    [
        (KERNELS, GPU, "--engine kernels: the kernels are code for CPUs"),
        (GRAPH, APPLE, "--engine graph: only NVIDIA's GPUs"),
        ("maybe", CPU, "auto, eager, kernels, graph or lanes, not 'maybe'"),
    ],
)
def test_an_engine_that_there_is_not_or_not_for_this_device_is_refused(engine, device, told):
    with pytest.raises(UsageError, match=told):
        chosen(engine, device)


@pytest.mark.parametrize("net", ["imagenet-resnet18", "cifar10-resnet1202", "cifar10-plain110"])
def test_lanes_are_nets_of_section_4_2(net):
    assert chosen("auto", GPU, net=net, precision="bf16") == (GRAPH if "imagenet" in net else LANES, [])


def test_passes_and_kernels_that_are_wrong_here_leave_a_graph(monkeypatch):
    name, (told,) = chosen("auto", GPU, micro=64, precision="tf32")
    assert (name, "in one pass" in told) == (GRAPH, True)
    monkeypatch.setattr(engine, "trouble_with_kernels", lambda device, spec: "our kernels disagree")
    told = ["Note: the engine is graph, as our kernels disagree."]
    assert chosen("auto", GPU, precision="bf16") == (GRAPH, told)
    assert chosen("auto", GPU, begun="inductor") == (GRAPH, [])
    with pytest.raises(UsageError, match="--engine lanes: our kernels disagree"):
        chosen("lanes", GPU)


def test_fp16_and_several_processes_do_without_graphs(monkeypatch):
    assert chosen("auto", GPU, precision="fp16") == (
        EAGER, ["Note: the engine is eager, as fp16 decides after each update whether it counts."],
    )  # fmt: skip
    monkeypatch.setattr(engine, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="several processes"):
        chosen("graph", GPU)


# --- device ----------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match=f"--device {name}: PyTorch sees no such GPU"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "tpu", "cuda:x", "meta", "", "cpu cuda"])
def test_an_unknown_device_is_refused_naming_those_there_are(name):
    with pytest.raises(UsageError, match=r"auto, cpu, cuda"):
        choose_device(name)


def test_auto_takes_a_gpu_where_there_is_one_and_else_the_cpu(monkeypatch):
    for cuda, mps, wanted in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert choose_device("auto").type == wanted


def test_threads_are_set_as_asked_put_back_and_less_than_one_is_refused():
    before = torch.get_num_threads()
    with threads_used(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), threads_used(2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="at least 1, not 0"), threads_used(0):
        pass


def test_float32_means_float32_and_tf32_is_allowed_only_when_asked_for():
    use_precision("tf32", torch.device("cuda"))
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    for precision in ("bf16", "float32"):
        use_precision(precision, CPU)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(UsageError, match="not of cpu"):
        use_precision("tf32", CPU)


@pytest.mark.parametrize(("precision", "kind"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_arithmetic_is_that_of_the_recipe(precision, kind):
    with arithmetic(precision, CPU):
        assert torch.nn.Linear(3, 2)(torch.ones(1, 3)).dtype == kind


def launched(monkeypatch, local_rank, processes, gpus):
    """Let this process be one of several that torchrun started on a machine with some GPUs."""
    told = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost"}
    for key, value in (told | {"LOCAL_WORLD_SIZE": processes}).items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, name):
    for rank in range(4):
        launched(monkeypatch, rank, 4, gpus=4)
        assert choose_device(name) == torch.device("cuda", rank)
    launched(monkeypatch, 1, 2, gpus=0)
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_more_processes_than_gpus_and_one_gpu_for_all_are_refused_by_all(monkeypatch):
    for rank in range(2):
        launched(monkeypatch, rank, 2, gpus=1)
        with pytest.raises(UsageError, match="2 processes on a machine with 1 GPUs"):
            choose_device("auto")
        with pytest.raises(UsageError, match="each process takes its own"):
            choose_device("cuda:0")


# --- memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_is_used_again_without_new_pages():
    def step():
        _ = [bytearray(40_000_000) for _ in range(4)]

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def work(rank):  # in a process of its own: it is for the rest of its life
        usual = faults()
        keep_memory()
        step()
        return usual, faults()

    ((usual, kept),) = in_ranks(1, work)
    assert usual > 10_000  # 3 x 160 MB in pages of 4 kB, unless all pages are large ones
    assert kept < usual / 100
