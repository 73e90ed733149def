"""What `--slurm` says, as sbatch is told it, and what of it is refused."""

import pytest

from resrepro.errors import UsageError
from resrepro.launch.sbatch import sbatch_parameters


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("0:30", 1), ("90:01", 91), ("1:30:00", 90), ("1-12", 2160), ("1-12:30", 2190),
     ("2-0:0:1", 2881)],
)  # fmt: skip
def test_a_time_is_read_as_slurm_reads_it(text: str, minutes: int) -> None:
    assert sbatch_parameters({"time": text})["time"] == minutes


def test_any_option_of_sbatch_is_passed_on() -> None:
    told = sbatch_parameters(
        {"mem": "8G", "gpus": "1", "parallel": "4", "mail-user": "a@b.c", "exclusive": ""}
    )
    assert told["additional_parameters"] == {
        "requeue": True,
        "mem": "8G",
        "mail-user": "a@b.c",
        "exclusive": True,
    }
    assert (told["gpus_per_node"], told["array_parallelism"]) == (1, 4)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("time", "soon", "takes minutes"), ("time", "0", "no time that a job can have"),
        ("cpus", "two", "whole number from 1"), ("gpus", "0", "whole number from 1"),
        ("ntasks", "2", "a run is one task"), ("output", "x", "a run is one task"),
        ("mem", "8G\n#SBATCH --uid=0", "as key=value"), ("a b", "1", "as key=value"),
        ("Mem;", "1", "as key=value"), ("cpus-per-task", "x", "--slurm cpus= takes a whole number from 1"),
        ("gpus", "a100", "whole number from 1"), ("gpus", "a100:0", "whole number from 1"),
        ("cpus", "\u0663", "whole number from 1"), ("no-requeue", "", "where it is requeued"),
        ("cpus-per-gpu", "4", "give cpus="),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(key: str, value: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        sbatch_parameters({key: value})


@pytest.mark.parametrize("key", ["cpus", "cpus-per-task", "cpus_per_task"])
def test_the_words_of_sbatch_for_what_ours_say_mean_the_same(key: str) -> None:
    told = sbatch_parameters({key: "8"}, {"cpus": "3"})
    assert told["cpus_per_task"] == 8
    assert told["additional_parameters"] == {"requeue": True}  # not there besides, where the later wins
    assert sbatch_parameters({}, {"cpus": "3"})["cpus_per_task"] == 3


def test_gpus_are_a_number_and_perhaps_a_kind() -> None:
    for key in ("gpus", "gpus-per-node", "gpus-per-task"):
        assert sbatch_parameters({key: "2"})["gpus_per_node"] == 2
        assert sbatch_parameters({key: "a100:2"})["gpus_per_node"] == "a100:2"


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--slurm cpus is given twice, under sbatch's name for it too"):
        sbatch_parameters({"cpus": "2", "cpus_per_task": "8"})
