"""What is settled about several processes before there are any."""

import sys

import jax
import pytest
import runs

from aludel.errors import UserError
from aludel.train.alike import code_digests, difference_of
from aludel.train.processes import Place, clustered, may_be_the_death_of_another, place_of
from aludel.train.records import Lines
from aludel.train.watch import lost_seconds

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "a[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_flags_win_over_the_environment():
    variables = {"ALUDEL_COORDINATOR": "a:1", "ALUDEL_PROCESSES": "4", "ALUDEL_PROCESS": "3"}
    assert place_of({}, {}) is None
    assert place_of({}, variables) == Place("a:1", 4, 3)
    assert place_of({"process": "0"}, variables) == Place("a:1", 4, 0)
    assert place_of({"processes": "1"}, {}).processes == 1


@pytest.mark.parametrize(
    "given, says",
    [
        (("a:1", "2", None), r"--process \(ALUDEL_PROCESS\)"),
        ((None, None, "0"), r"--coordinator \(ALUDEL_COORDINATOR\)"),
        (("a", "2", "0"), "HOST:PORT, not 'a'"),
        (("a:x", "2", "0"), "HOST:PORT, not 'a:x'"),
        (("a:1", "two", "0"), "whole number, not 'two'"),
        (("a:1", "2", "-1"), "whole number, not '-1'"),
        (("a:1", "2", "2"), "2 is not among 2 processes: they count from 0 to 1"),
        (("a:1", "0", "0"), "--processes must be at least 1"),
    ],
)
def test_half_a_place_and_nonsense_are_refused(given, says):
    flags = dict(zip(("coordinator", "processes", "process"), given, strict=True))
    with pytest.raises(UserError, match=says):
        place_of(flags, {})


def test_how_long_a_process_may_be_silent():
    assert lost_seconds({}) == 60 and lost_seconds({"ALUDEL_LOST_SECONDS": "90"}) == 90
    for nonsense in ("soon", "5", "nan", "inf"):
        with pytest.raises(UserError, match="must be at least 20"):
            lost_seconds({"ALUDEL_LOST_SECONDS": nonsense})


@pytest.mark.parametrize("number", [0, 1])
def test_who_waits_in_vain_is_told(number):
    start = (
        "from aludel.train import processes\n"
        "processes.START_SECONDS = 1.0\n"
        f"processes.start(processes.Place('127.0.0.1:{runs.free_port()}', 2, {number}))\n"
    )
    done = runs.run([sys.executable, "-c", start])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"process {number} of 2" in line and "did not all come within 1 seconds" in line


@pytest.mark.parametrize(
    "environment, tpu, expected",
    [
        ({}, False, False),
        (SLURM, False, True),
        ({**SLURM, "SLURM_NTASKS": "1"}, False, False),
        ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}, False, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, True, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, True),
        ({}, True, True),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, False),
    ],
)
def test_where_jax_can_find_the_others(environment, tpu, expected):
    assert clustered(environment, tpu) == expected


def test_the_first_difference_is_named():
    one = {"code": {"train/loop.py": "ab"}, "config": {"seed": 0, "model": {"width": 8}}}
    assert difference_of(one, one) is None
    other = {**one, "config": {"seed": 0, "model": {"width": 9}}}
    assert difference_of(one, other) == "its config is another: model.width is 9, not 8"
    other = {**one, "code": {"train/loop.py": "ac"}}
    assert difference_of(one, other) == "its code is another: train/loop.py differs"
    other = {**one, "code": {**one["code"], "train/step.py": "cd"}}
    assert difference_of(one, other) == "its code is another: train/step.py differs"


def test_code_is_that_of_the_package_and_changes_with_it(tmp_path):
    for name in ("__init__.py", "setup.py", "room/__init__.py", "room/a/b.cc", "stray/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    before = code_digests(tmp_path)
    assert list(before) == ["__init__.py", "room/__init__.py", "room/a/b.cc"]
    (tmp_path / "room/a/b.cc").write_text("changed")
    after = code_digests(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["room/a/b.cc"]


def test_lines_that_another_process_keeps_are_left_alone(tmp_path):
    kept, other = Lines(tmp_path / "a.jsonl"), Lines(tmp_path / "a.jsonl", kept=False)
    kept.append({"step": 1})
    kept.sync()
    other.append({"step": 2})
    other.amend(1, {"loss": 3})
    other.cut(0)
    other.sync()
    other.close()
    assert other.read() == [] and kept.read() == [{"step": 1}]


def test_which_errors_may_be_the_death_of_another_process():
    left = "UNKNOWN: Gloo AllGather failed: Connection reset by peer"
    for error in (ValueError(left), jax.errors.JaxRuntimeError(left)):
        assert may_be_the_death_of_another(error)
    for error in (
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing /runs/collective/3: No space left on device"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        OSError(left),
    ):
        assert not may_be_the_death_of_another(error)
