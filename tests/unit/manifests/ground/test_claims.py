import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hkdpipe.manifests.ground import claims
from hkdpipe.manifests.ground.claims import STALE_SECONDS, Claims, owning
from hkdpipe.manifests.ground.errors import InUseError

THIS_PROCESS = rf"process {os.getpid()} on {os.uname().nodename}, since \d{{4}}-\d\d-\d\dT[\d:]{{8}}\+00:00"
HOLD = """
import sys, time
from pathlib import Path
from hkdpipe.manifests.ground.claims import Claims
with Claims(Path(sys.argv[1])) as held:
    print(held.take("3"), flush=True)
    time.sleep(100)
"""
RACE = """
import sys
from pathlib import Path
from hkdpipe.manifests.ground.claims import Claims
with Claims(Path(sys.argv[1])) as held:
    sys.stdin.readline()
    print(*[k for k in range(200) if held.take(str(k))], flush=True)
    sys.stdin.readline()
"""


def start(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_shard_has_one_owner_until_it_is_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("3")
        assert not other.take("3")
        assert other.take("4")
        assert (one.holds("3"), other.holds("3"), one.holds("4"), one.holds("5")) == (
            True,
            False,
            False,
            False,
        )
        assert re.fullmatch(THIS_PROCESS, other.owner("3"))
        one.release("3")
        assert other.take("3")
        one.release("3")
        assert other.holds("3")
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_there_though_refused_is_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request of which it did not see the answer, and answers that the link is there."""
    link = Path.hardlink_to

    def twice(path: Path, target: Path) -> None:
        link(path, target)
        link(path, target)

    with Claims(tmp_path) as own, Claims(tmp_path) as other:
        monkeypatch.setattr(Path, "hardlink_to", twice)
        assert own.take("3")
        assert not other.take("3")
        own.release("3")
        assert other.take("3")
        other.release("3")
    assert list((tmp_path / "claims").iterdir()) == []


def test_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    assert line(process) == "True"
    with Claims(tmp_path) as own:
        assert not own.take("3")
        process.kill()
        process.wait()
        assert own.take("3")
        assert own.holds("3")


@pytest.mark.parametrize("content", [b'{"tok', json.dumps({"host": "elsewhere", "pid": 1}).encode()])
def test_claim_that_cannot_be_judged_is_kept_while_its_heart_beats(tmp_path: Path, content: bytes) -> None:
    """Of another machine, or cut off."""
    with Claims(tmp_path) as own:
        path = tmp_path / "claims" / "3.json"
        path.write_bytes(content)
        assert not own.take("3")
        silent = time.time() - STALE_SECONDS - 5
        os.utime(path, (silent, silent))
        assert own.take("3")


def test_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    with Claims(tmp_path) as own:
        own.take("3")
        path = tmp_path / "claims" / "3.json"
        os.utime(path, (0, 0))
        for _ in range(500):
            if path.stat().st_mtime > 0:
                break
            time.sleep(0.02)
        assert path.stat().st_mtime > time.time() - 60


def test_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    with Claims(tmp_path) as own, Claims(tmp_path) as other:
        own.take("3")
        path = tmp_path / "claims" / "3.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "started": values["started"] - 1}))
        assert other.take("3")


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    assert line(process) == "True"
    process.kill()
    process.wait()
    leftover = tmp_path / "claims" / ".7.123.0123456789abcdef.tmp"
    leftover.touch()
    with Claims(tmp_path) as own:
        own.take("4")
        own.remove_leftovers()
        assert [path.name for path in (tmp_path / "claims").iterdir()] == ["4.json"]


def test_processes_that_race_share_all_shards_and_none_twice(tmp_path: Path) -> None:
    """Half of the shards are held by a process that is dead, so that they have to be taken over."""
    dead = start(RACE.replace("range(200)", "range(0, 200, 2)"), tmp_path)
    assert dead.stdin is not None
    dead.stdin.write("\n")
    dead.stdin.flush()
    assert len(line(dead).split()) == 100
    dead.kill()
    dead.wait()
    racers = [start(RACE, tmp_path) for _ in range(3)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    taken = [list(map(int, line(racer).split())) for racer in racers]
    for racer in racers:
        racer.communicate("\n")
    assert sorted(k for part in taken for k in part) == list(range(200))


OWN = """
import sys, time
from pathlib import Path
from hkdpipe.manifests.ground.claims import owning
with owning(Path(sys.argv[1]), "it"):
    print("owned", flush=True)
    time.sleep(100)
"""
ELSEWHERE = {"token": "x", "host": "node7", "pid": 12, "job": "345", "since": "2030-01-02T03:04:05+00:00"}


def refused(folder: Path, message: str, shared: bool = False) -> None:
    with pytest.raises(InUseError, match=message), owning(folder, "runs/x", shared):
        pass


def test_a_folder_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = rf"^runs/x is in use by {THIS_PROCESS} \({tmp_path}/claims\)$"
    for _ in range(2):
        with owning(tmp_path, "runs/x") as check_owned:
            check_owned()
            refused(tmp_path, in_use)
            refused(tmp_path, in_use, shared=True)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with owning(tmp_path, "runs/x"):
        refused(tmp_path, rf"in use by process {os.getpid()} on .*, job 77, since ")
    assert list((tmp_path / "claims").iterdir()) == []


def test_sharers_of_a_folder_keep_others_out(tmp_path: Path) -> None:
    with owning(tmp_path, "runs/x", shared=True) as one:
        with owning(tmp_path, "runs/x", shared=True) as other:
            one()
            other()
            refused(tmp_path, rf"^runs/x is in use by {THIS_PROCESS} ")
        refused(tmp_path, rf"^runs/x is in use by {THIS_PROCESS} ")
    with owning(tmp_path, "runs/x"):
        pass
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_folder_is_free_when_its_owner_is_killed(tmp_path: Path) -> None:
    process = start(OWN, tmp_path)
    assert line(process) == "owned"
    for shared in (False, True):
        refused(tmp_path, rf"^runs/x is in use by process {process.pid} on ", shared)
    process.kill()
    process.wait()
    for shared in (True, False):
        with owning(tmp_path, "runs/x", shared) as check_owned:
            check_owned()


@pytest.mark.parametrize("holder", ["owner", "sharer-0"])
def test_an_owner_on_another_machine_is_believed_while_its_heart_beats(tmp_path: Path, holder: str) -> None:
    (tmp_path / "claims").mkdir()
    record = tmp_path / "claims" / f"{holder}.json"
    record.write_text(json.dumps(ELSEWHERE))
    refused(tmp_path, r"in use by process 12 on node7, job 345, since 2030-01-02T03:04:05\+00:00 \(")
    assert list((tmp_path / "claims").iterdir()) == [record]
    silent = time.time() - STALE_SECONDS - 5
    os.utime(record, (silent, silent))
    with owning(tmp_path, "runs/x"):
        pass


def test_who_lost_a_folder_is_told_and_leaves_the_new_owner_alone(tmp_path: Path) -> None:
    record = tmp_path / "claims" / "owner.json"
    with owning(tmp_path, "runs/x") as check_owned:
        record.write_text(json.dumps(ELSEWHERE))
        with pytest.raises(
            InUseError, match=r"^runs/x was taken over by process 12 on node7, job 345, since "
        ):
            check_owned()
    assert json.loads(record.read_text()) == ELSEWHERE
    record.unlink()
    with owning(tmp_path, "runs/x") as check_owned:
        record.unlink()
        with pytest.raises(InUseError, match="was taken over by another process: nothing more is written"):
            check_owned()


def test_a_folder_of_claims_that_is_deleted_ends_the_claiming(tmp_path: Path) -> None:
    with Claims(tmp_path) as own:
        (tmp_path / "claims").rmdir()
        with pytest.raises(FileNotFoundError):
            own.take("3")
