import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hkdpipe.manifests.ground import atomic_files
from hkdpipe.manifests.ground.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fail_on_call(function: Any, n: int) -> Any:
    """`function`, but its n-th call (from 1) finds the disk full."""
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return disk_full() if calls == n else function(*args, **kwargs)

    return wrapper


def test_write_replaces(tmp_path: Path) -> None:
    atomic_files.write_atomic(tmp_path / "a", b"one")
    atomic_files.write_atomic(tmp_path / "a", memoryview(b"two"))
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_the_data_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        events.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noting_replace(source: Any, target: Any) -> None:
        events.append("rename")
        assert Path(source).read_bytes() == b"data"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    atomic_files.write_atomic(tmp_path / "a", b"data")
    assert events[0].startswith("fsync .a.")
    assert events[1:] == ["rename", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    atomic_files.write_atomic(tmp_path / "a", b"old")
    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(OSError, match="No space left"):
        atomic_files.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_json_round_trip_keeps_order(tmp_path: Path) -> None:
    atomic_files.write_json(tmp_path / "a.json", {"z": [1, 2.5], "a": "σ"})
    assert (tmp_path / "a.json").read_text() == '{\n "z": [\n  1,\n  2.5\n ],\n "a": "σ"\n}\n'
    assert list(atomic_files.read_json(tmp_path / "a.json")) == ["z", "a"]
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_files.write_json(tmp_path / "a.json", float("nan"))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "missing"), (b'{"a": ', "not JSON"), (b'"\xff"', "not UTF-8")]
)
def test_unreadable_json(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        atomic_files.read_json(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert atomic_files.sha256_file(tmp_path / "a") == expected


@pytest.mark.parametrize("name", ["a", None])
def test_what_others_put_in_place_meanwhile_is_no_leftover(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone between listing the folder and looking at it, or between that and deleting it."""
    leftover, gone, going = (tmp_path / f".{letter}.1.{'0' * 16}.tmp" for letter in "abc")
    leftover.touch()
    going.touch()
    lstat = Path.lstat

    def last_look(path: Path) -> os.stat_result:
        status = lstat(path)
        if path == going:
            path.unlink()
        return status

    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([gone, going, leftover]))
    monkeypatch.setattr(Path, "lstat", last_look)
    atomic_files.remove_temporaries(tmp_path, name)
    assert not leftover.exists()


def fill(path: Path, text: str) -> None:
    with atomic_files.atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text(text)
        assert not path.exists() or (path / "sub" / "a").read_text() != text


def test_folder_appears_and_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "f", "one")
    assert (tmp_path / "f" / "sub" / "a").read_text() == "one"
    fill(tmp_path / "f", "two")
    assert (tmp_path / "f" / "sub" / "a").read_text() == "two"
    assert names(tmp_path) == ["f"]


def test_all_of_a_folder_is_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[Path] = []
    monkeypatch.setattr(atomic_files, "sync", synchronised.append)
    fill(tmp_path / "f", "one")
    assert sorted(path.name for path in synchronised if not path.name.startswith(".")) == sorted(
        ["sub", "a", tmp_path.name]
    )
    assert sum(path.name.startswith(".f.") for path in synchronised) == 1


def test_exception_in_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_files.atomic_folder(tmp_path / "f") as folder:
            (folder / "a").write_text("two")
            raise KeyboardInterrupt

    fill(tmp_path / "f", "one")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "f" / "sub" / "a").read_text() == "one"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize(("call", "n"), [("fsync", 1), ("fsync", 3), ("rename", 1), ("rename", 2)])
def test_failure_in_publishing_a_folder_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, n: int
) -> None:
    fill(tmp_path / "f", "one")
    monkeypatch.setattr(os, call, fail_on_call(getattr(os, call), n))
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "f", "two")
    assert (tmp_path / "f" / "sub" / "a").read_text() == "one"
    assert names(tmp_path) == ["f"]


def test_leftovers_of_killed_writers(tmp_path: Path) -> None:
    """A process that dies at each rename in turn: the old or the new folder is there after clearing up."""
    script = """
import os, sys
from pathlib import Path
from hkdpipe.manifests.ground import atomic_files
real, calls, last = os.rename, 0, int(sys.argv[2])
def rename(*args):
    global calls
    calls += 1
    if calls == last: os._exit(9)
    real(*args)
os.rename = rename
with atomic_files.atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
"""
    for n in (1, 2):
        with atomic_files.atomic_folder(tmp_path / "f") as folder:
            (folder / "a").write_text("old")
        process = subprocess.run([sys.executable, "-c", script, tmp_path / "f", str(n)], check=False)
        assert process.returncode == 9
        assert len(names(tmp_path)) == 2
        assert (tmp_path / "f").exists() == (n == 1)
        atomic_files.remove_temporaries(tmp_path)
        assert names(tmp_path) == ["f"]
        assert (tmp_path / "f" / "a").read_text() == "old"


def test_the_folder_moved_away_last_is_put_back(tmp_path: Path) -> None:
    for name, token in (("first", "b"), ("last", "a"), ("first", "c")):
        (tmp_path / f".f.1.{token * 16}.old").mkdir()
        (tmp_path / f".f.1.{token * 16}.old" / name).touch()
        time.sleep(0.02)
    (tmp_path / f".f.1.{'a' * 16}.old").rename(tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / f".f.1.{'a' * 16}.old")
    atomic_files.remove_temporaries(tmp_path)
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["last"]


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    keep = [".a.tmp", ".hidden", "a.tmp", ".a.12.0123456789abcdef.tmp.txt"]
    for name in [*keep, ".a.12.0123456789abcdef.tmp", "b", ".b.12.0123456789abcdef.old"]:
        (tmp_path / name).write_text("x")
    atomic_files.remove_temporaries(tmp_path)
    assert names(tmp_path) == sorted([*keep, "b"])
    atomic_files.remove_temporaries(tmp_path / "absent")


def test_a_killed_removal_leaves_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that dies at its rename, and one that dies at its first deletion."""

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for function, left in ((os, "rename"), ["f"]), ((os, "unlink"), []):
        fill(tmp_path / "f", str(left))
        with monkeypatch.context() as patch:
            patch.setattr(*function, die)
            with pytest.raises(KeyboardInterrupt):
                atomic_files.remove_folder(tmp_path / "f")
        atomic_files.remove_temporaries(tmp_path)
        assert names(tmp_path) == left
    fill(tmp_path / "f", "two")
    atomic_files.remove_folder(tmp_path / "f")
    assert names(tmp_path) == []
