import os
from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.loop.world import World, meeting_place, told_rank, world_from_environment


def test_world_as_torchrun_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world_from_environment() == World(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert world_from_environment() == World(5, 8, 1)
    assert not world_from_environment().first
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UsageError, match="RANK=one, WORLD_SIZE=8"):
        world_from_environment()


SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


@pytest.fixture
def srun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_world_as_srun_tells_it(srun: pytest.MonkeyPatch) -> None:
    assert (world_from_environment(), told_rank()) == (World(5, 8, 1), "5")
    srun.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert world_from_environment() == World(5, 8, 1)
    srun.setenv("CUDA_VISIBLE_DEVICES", "3")  # the task was given this one alone
    assert world_from_environment() == World(5, 8, 0)
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2")):
        srun.setenv(name, value)  # torchrun, itself started by srun
    assert (world_from_environment(), told_rank()) == (World(2, 4, 2), "2")


def test_a_batch_script_is_no_task(srun: pytest.MonkeyPatch) -> None:
    srun.delenv("SLURM_STEP_ID")
    assert (world_from_environment(), told_rank()) == (World(), "0")


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_PROCID", "8"), ("SLURM_NTASKS", "x"), ("SLURM_LOCALID", "6"), ("SLURM_LOCALID", "")],
)
def test_variables_of_srun_that_contradict(srun: pytest.MonkeyPatch, name: str, value: str) -> None:
    srun.setenv(name, value)
    with pytest.raises(UsageError, match=f"^environment of srun: .*{name}={value}"):
        world_from_environment()


def test_where_tasks_of_srun_meet(srun: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"\n'
        '[ "$*" = "--oneliner show node n3" ] && echo "NodeName=n3 NodeAddr=10.0.0.3 Version=22"; exit 0\n'
    )
    scontrol.chmod(0o755)
    srun.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    srun.setenv("SLURM_STEP_NODELIST", "n[3-4]")
    srun.setenv("SLURM_JOB_ID", "40123")
    assert meeting_place() == {"MASTER_ADDR": "10.0.0.3", "MASTER_PORT": "20123"}
    srun.setenv("SLURM_STEP_NODELIST", "nowhere")
    with pytest.raises(UsageError, match="SLURM_STEP_NODELIST=nowhere, SLURM_JOB_ID=40123; accepted"):
        meeting_place()
    srun.setenv("MASTER_ADDR", "here")
    srun.setenv("MASTER_PORT", "1")
    assert meeting_place() == {"MASTER_ADDR": "here", "MASTER_PORT": "1"}
