import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive import contents, reader, writer
from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import HkdpipeError, InputError, InUseError, UsageError
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.manifests.places import shard_files
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import decode

Write = Callable[[Path, Plan], NDArray[Any]]
Values = Callable[[Plan], NDArray[Any]]
OTHER_LABELS = {"file": "../../etc/passwd", "bytes": 36, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("dtype", "given"), [("float16", "float16"), ("float32", "float32"), ("bfloat16", "float32")]
)
def test_read_is_numpy_indexing(tmp_path: Path, plan: Plan, write: Write, dtype: str, given: str) -> None:
    plan = dataclasses.replace(plan, dtype=dtype)
    data = decode(write(tmp_path, plan), dtype)
    random = np.random.default_rng(0)
    with reader.open_archive(str(tmp_path)) as opened:
        assert len(opened) == 10
        assert opened.shape == (2, 3, 4)
        assert (opened.plan, opened.identity) == (plan, plan.identity())
        assert opened.sigmas.dtype == np.float64
        assert opened.sigmas.tolist() == list(plan.sigmas)
        for _ in range(100):
            batch, k = random.integers(0, 12), random.integers(0, 7)
            rows = random.integers(0, 10, batch)
            shared, own = random.integers(0, 5, k), random.integers(0, 5, (batch, k))
            for columns, expected in ((shared, data[rows][:, shared]), (own, data[rows[:, None], own])):
                result = opened.read(rows, columns)
                assert (result.dtype, result.shape) == (np.dtype(given), (batch, k, 2, 3, 4))
                assert result.tobytes() == expected.tobytes()
        assert opened.read([3], [[1, 2]]).tobytes() == data[3, 1:3].tobytes()
        assert opened.read([3, 9, 3], [4, 0]).flags.writeable


def test_consecutive_states_are_one_read(
    tmp_path: Path, plan: Plan, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, plan)
    opened = reader.open_archive(tmp_path)
    opened.read([0], [0])
    sizes: list[int] = []
    preadv = os.preadv

    def noting(descriptor: int, buffers: Any, offset: int) -> int:
        sizes.append(sum(memoryview(b).nbytes for b in buffers))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", noting)
    opened.read([0, 1], [1, 2, 3])
    opened.read([0], [0, 4])
    opened.read([0, 1], [[3, 2], [2, 3]])
    state = plan.state_bytes
    assert sizes == [3 * state, 3 * state, state, state, state, state, 2 * state]


def test_numbers_out_of_range(tmp_path: Path, plan: Plan, write: Write) -> None:
    write(tmp_path, plan)
    opened = reader.open_archive(tmp_path)
    for indices, states in [
        ([10], [0]),
        ([-1], [0]),
        ([0], [5]),
        ([0], [-1]),
        ([0.0], [0]),
        ([True], [0]),
        ([[0]], [0]),
        ([0, 1], [[0], [1], [2]]),
        ([0], [[[0]]]),
        ([0], 0),
    ]:
        with pytest.raises(ValueError, match=r"indices|states"):
            opened.read(indices, states)  # type: ignore[arg-type]
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        opened.read([0], [0])


def test_begin_twice_and_another_plan(tmp_path: Path, plan: Plan, write: Write) -> None:
    write(tmp_path, plan)
    manifest = (tmp_path / "manifest.json").read_bytes()
    writer.begin(tmp_path, plan)
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    for change, message in [
        ({"seed": 8}, "seed: this archive has 7, now 8"),
        ({"sampler": plan.sampler | {"rho": 5.0}}, r"sampler\.rho: this archive has 7\.0, now 5\.0"),
        (
            {"teacher": plan.teacher | {"architecture": plan.teacher["architecture"] | {"kind": "other"}}},
            r"teacher\.architecture\.kind: this archive has 'SongUNet', now 'other'",
        ),
        ({"count": 9}, "count: this archive has 10, now 9; it may only grow"),
    ]:
        with pytest.raises(UsageError, match=message):
            writer.begin(tmp_path, dataclasses.replace(plan, **change))
    assert contents.missing_shards(tmp_path, plan) == []


def test_growth_keeps_whole_shards_and_replaces_the_partial_one(
    tmp_path: Path, plan: Plan, grown: Plan, write: Write
) -> None:
    write(tmp_path, plan)
    kept = [tmp_path / shard.file for shard in reader.open_archive(tmp_path).shards[:2]]
    stamps = [path.stat().st_ino for path in kept]
    writer.begin(tmp_path, grown)
    assert not (tmp_path / "manifest.json").exists()
    assert contents.missing_shards(tmp_path, grown) == [2, 3]
    data = write(tmp_path, grown)
    assert [path.stat().st_ino for path in kept] == stamps
    opened = reader.open_archive(tmp_path)
    assert len(opened) == 15
    assert opened.read(range(15), range(5)).tobytes() == data.tobytes()
    with pytest.raises(UsageError, match="only grow"):
        writer.begin(tmp_path, plan)


def test_a_shard_of_another_plan_is_missing(tmp_path: Path, plan: Plan, write: Write) -> None:
    write(tmp_path, plan)
    assert contents.missing_shards(tmp_path, dataclasses.replace(plan, seed=8)) == [0, 1, 2]


def test_wrong_states_are_refused(tmp_path: Path, plan: Plan, values: Values) -> None:
    writer.begin(tmp_path, plan)
    data = values(plan)[:4]
    for wrong in (data[:3], data[:, :4], data.astype("f4")):
        with pytest.raises(ValueError, match="shard 0 takes float16"):
            writer.write_shard(tmp_path, plan, 0, wrong, {})
    data[2, 1, 0, 0, 0] = np.inf
    with pytest.raises(HkdpipeError, match="trajectory 2 is not finite"):
        writer.write_shard(tmp_path, plan, 0, data, {})
    assert contents.missing_shards(tmp_path, plan) == [0, 1, 2]


def test_describe(tmp_path: Path, plan: Plan, grown: Plan, values: Values, write: Write) -> None:
    numbers = ("shards_done", "shards", "trajectories", "count")

    def state() -> tuple[Any, ...]:
        described = contents.describe(tmp_path)
        return (described["state"], *(described[name] for name in numbers))

    assert state() == ("absent", 0, 0, 0, 0)
    writer.begin(tmp_path, plan)
    assert state() == ("partial", 0, 3, 0, 10)
    record = writer.write_shard(tmp_path, plan, 2, values(plan)[8:], {"device": "cpu"})
    assert state() == ("partial", 1, 3, 2, 10)
    assert contents.describe(tmp_path)["bytes"] == sum(size for _, size, _ in record.files)
    with pytest.raises(InputError, match=r"shard 0 .* is missing"):
        writer.finish(tmp_path, plan)
    with pytest.raises(InputError, match="generate it again to finish it"):
        reader.open_archive(tmp_path)
    write(tmp_path, plan)
    assert state() == ("complete", 3, 3, 10, 10)
    (tmp_path / record.file).unlink()
    assert state() == ("partial", 2, 3, 8, 10)
    writer.begin(tmp_path, grown)
    assert state() == ("partial", 2, 4, 8, 15)


def test_a_manifest_and_shards_are_enough_to_read(tmp_path: Path, plan: Plan, write: Write) -> None:
    data = write(tmp_path, plan)
    (tmp_path / "plan.json").unlink()
    for path in (tmp_path / "records").iterdir():
        path.unlink()
    assert reader.open_archive(tmp_path).read(range(10), range(5)).tobytes() == data.tobytes()
    assert contents.describe(tmp_path)["state"] == "complete"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


@pytest.mark.parametrize("damage", [truncate, lengthen, Path.unlink])
def test_damaged_size_is_found_on_opening(
    tmp_path: Path, plan: Plan, write: Write, damage: Callable[[Path], None]
) -> None:
    write(tmp_path, plan)
    shard = reader.open_archive(tmp_path).shards[1]
    damage(tmp_path / shard.file)
    with pytest.raises(InputError, match=rf"shard 1 \({shard.file}\) is (missing|damaged)"):
        reader.open_archive(tmp_path)
    assert contents.missing_shards(tmp_path, plan) == [1]
    writer.begin(tmp_path, plan)
    assert not (tmp_path / "manifest.json").exists()
    data = write(tmp_path, plan)
    assert reader.open_archive(tmp_path).read(range(10), [0]).tobytes() == data[:, :1].tobytes()


LABELS_FILES = pytest.mark.parametrize(("form", "plan"), [("zarr", (0, 7, 3))], indirect=True)


@pytest.fixture
def labels_file(tmp_path: Path, plan: Plan, write: Write) -> Path:
    """That of shard 1 of an archive which keeps labels in a file of their own."""
    write(tmp_path, plan)
    return tmp_path / "labels" / "c" / "1"


@LABELS_FILES
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_shard_without_its_labels_is_missing(
    tmp_path: Path, plan: Plan, write: Write, labels_file: Path, damage: Callable[[Path], None]
) -> None:
    before = labels_file.read_bytes()
    damage(labels_file)
    assert contents.describe(tmp_path)["state"] == "partial"
    with pytest.raises(InputError, match=r"shard 1 \(labels/c/1\) is (missing|damaged)"):
        reader.open_archive(tmp_path)
    assert contents.missing_shards(tmp_path, plan) == [1]
    write(tmp_path, plan)
    assert contents.describe(tmp_path)["state"] == "complete"
    assert labels_file.read_bytes() == before


@LABELS_FILES
def test_damaged_labels_are_found_on_first_use(tmp_path: Path, labels_file: Path) -> None:
    opened = reader.open_archive(tmp_path)
    content = bytearray(labels_file.read_bytes())
    content[0] ^= 1
    labels_file.write_bytes(content)
    opened.read([0], [0])
    with pytest.raises(InputError, match=r"shard 1 \(labels/c/1\) is damaged"):
        opened.read([4], [0])
    labels_file.unlink()
    with pytest.raises(InputError, match=r"shard 1 \(labels/c/1\) is missing"):
        opened.read([4], [0])


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_bit_is_found_on_first_use(tmp_path: Path, plan: Plan, write: Write, place: float) -> None:
    data = write(tmp_path, plan)
    opened = reader.open_archive(tmp_path)
    path = tmp_path / opened.shards[1].file
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)
    assert opened.read([0, 9], [1]).tobytes() == data[[0, 9], 1].tobytes()
    for _ in range(2):
        with pytest.raises(InputError, match=r"shard 1 .* is damaged"):
            opened.read([0, 4], [1])


def test_damage_after_opening(tmp_path: Path, plan: Plan, write: Write) -> None:
    write(tmp_path, plan)
    opened = reader.open_archive(tmp_path)
    (tmp_path / opened.shards[1].file).unlink()
    with pytest.raises(InputError, match=r"shard 1 .* is missing"):
        opened.read([4], [0])
    opened.read([0], [0])
    os.truncate(tmp_path / opened.shards[0].file, opened.shards[0].offset + 10)
    with pytest.raises(InputError, match=r"shard 0 .* ends early"):
        opened.read([0], [0])


def test_short_reads_go_on(tmp_path: Path, plan: Plan, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path, plan)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:17]], offset))
    assert reader.open_archive(tmp_path).read(range(10), range(5)).tobytes() == data.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("plan"), "not a JSON object"),
        (lambda m: m.pop("shards"), "not the manifest"),
        (lambda m: m["shards"].pop(), "2 shards, but the plan has 3"),
        (lambda m: m["shards"].reverse(), "shard 0 is not the plan's"),
        (lambda m: m["shards"][1].update(file="../../etc/passwd"), "shard 1 is not the plan's"),
        (lambda m: m["shards"][1].update(labels=OTHER_LABELS), "shard 1 is not the plan's"),
        (lambda m: m["shards"][1].update(offset=10**6), "shard 1 is not the plan's"),
        (lambda m: m["shards"][1].update(stride=1), "shard 1 is not the plan's"),
        (lambda m: m["plan"].update(seed=8), "shard 0 is not the plan's"),
        (lambda m: m["plan"].update(count="x"), "count: got 'x'"),
    ],
)
def test_damaged_manifest(
    tmp_path: Path, plan: Plan, write: Write, change: Callable[[Any], Any], message: str
) -> None:
    write(tmp_path, plan)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json: (changed since|not the manifest)"):
        reader.open_archive(tmp_path)
    manifest["sha256"] = digest({key: manifest.get(key) for key in ("plan", "shards")})
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message) as raised:
        reader.open_archive(tmp_path)
    assert str(raised.value).startswith(f"{path}: ")


def test_each_shard_is_verified_once_and_again_when_replaced(
    tmp_path: Path, plan: Plan, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, plan)
    hashed: list[str] = []
    sha256 = shard_files.OpenFile.sha256

    def noting(self: shard_files.OpenFile) -> str:
        hashed.append(str(Path(f"/proc/self/fd/{self.descriptor}").readlink().relative_to(tmp_path)))
        return sha256(self)

    monkeypatch.setattr(shard_files.OpenFile, "sha256", noting)
    monkeypatch.setattr(shard_files.LocalFolder, "open_files", 1)  # so that files are opened again and again
    opened = reader.open_archive(tmp_path)
    for _ in range(3):
        opened.read([0, 9, 4, 0], [0])
    assert sorted(hashed) == sorted(file for shard in opened.shards for file, _, _ in shard.files)
    path = tmp_path / opened.shards[2].file
    path.rename(tmp_path / "aside")
    path.write_bytes((tmp_path / "aside").read_bytes()[:-1] + b"x")
    opened.read([0], [0])
    with pytest.raises(InputError, match=r"shard 2 .* is damaged"):
        opened.read([9], [0])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_and_a_bounded_number_of_open_files(
    tmp_path: Path, plan: Plan, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files.LocalFolder, "open_files", 2)
    plan = dataclasses.replace(plan, shard_size=1)
    data = write(tmp_path, plan)
    opened = reader.open_archive(tmp_path)
    failures: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(100):
                rows, columns = random.integers(0, 10, 4), random.integers(0, 5, 3)
                if opened.read(rows, columns).tobytes() != data[rows][:, columns].tobytes():
                    failures.append("wrong data")
        except Exception as error:
            failures.append(repr(error))

    before = open_files()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert open_files() == before + 2
    opened.close()
    assert open_files() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_at_every_moment(
    tmp_path: Path, plan: Plan, values: Values, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The n-th fsync or rename of a whole generation fails, for every n; going on completes the archive."""
    data = values(plan)
    real = getattr(os, call)
    failed = True
    n = 0
    while failed:
        n += 1
        root = tmp_path / str(n)
        failed = generate_failing(root, plan, data, monkeypatch, call, n)
        monkeypatch.setattr(os, call, real)
        assert not list(root.rglob(".*.tmp"))
        check_recorded_shards(root, plan)
        generate(root, plan, data)
        assert reader.open_archive(root).read(range(10), range(5)).tobytes() == data.tobytes()
    assert n > 8


def generate(root: Path, plan: Plan, data: NDArray[Any]) -> None:
    writer.begin(root, plan)
    for k in contents.missing_shards(root, plan):
        start, stop = plan.shard_range(k)
        writer.write_shard(root, plan, k, data[start:stop], {})
    writer.finish(root, contents.planned(root))


def generate_failing(
    root: Path, plan: Plan, data: NDArray[Any], monkeypatch: pytest.MonkeyPatch, call: str, n: int
) -> bool:
    """Whether generation reached its n-th such call, and failed in it."""
    real, calls = getattr(os, call), 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, failing)
    try:
        generate(root, plan, data)
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def check_recorded_shards(root: Path, plan: Plan) -> None:
    """A shard that counts as done has the bytes its record says."""
    for k in set(range(plan.shards)) - set(contents.missing_shards(root, plan)):
        record = json.loads((root / "records" / f"{k:06d}.json").read_text())
        for stored in (record, record.get("labels", record)):
            assert sha256_file(root / stored["file"]) == stored["sha256"]


KILLED_WRITER = """
import json, os, sys
from pathlib import Path
import numpy as np
from hkdpipe.manifests.archive import contents, writer
from hkdpipe.manifests.plan.plan import Plan
root, call, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plan = Plan.from_json(json.loads(sys.argv[4]), root)
data = np.frombuffer(bytes.fromhex(sys.argv[5]), plan.stored_dtype).reshape(plan.count, *plan.states_shape)
real, calls = getattr(os, call), 0
def dying(*args):
    global calls
    calls += 1
    if calls == last: os.kill(os.getpid(), 9)
    return real(*args)
setattr(os, call, dying)
writer.begin(root, plan)
for k in contents.missing_shards(root, plan):
    start, stop = plan.shard_range(k)
    writer.write_shard(root, plan, k, data[start:stop], {})
writer.finish(root, plan)
"""


@pytest.mark.parametrize(("call", "n"), [("replace", 4), ("fsync", 12)])
def test_killed_writer(tmp_path: Path, plan: Plan, values: Values, call: str, n: int) -> None:
    data = values(plan)
    plan_text = json.dumps(plan.to_json())
    arguments = [tmp_path, call, str(n), plan_text, data.tobytes().hex()]
    process = subprocess.run([sys.executable, "-c", KILLED_WRITER, *arguments], check=False)
    assert process.returncode == -9
    check_recorded_shards(tmp_path, plan)
    assert contents.describe(tmp_path)["state"] == "partial"
    leftovers = list(tmp_path.rglob(".*.tmp"))
    assert call == "fsync" or len(leftovers) == 1
    generate(tmp_path, plan, data)
    assert list(tmp_path.rglob(".*.tmp")) == []
    assert reader.open_archive(tmp_path).read(range(10), range(5)).tobytes() == data.tobytes()


def test_rewriting_a_shard_removes_its_record_first(
    tmp_path: Path, plan: Plan, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path, plan)

    def failing(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write_atomic", failing)
    with pytest.raises(OSError, match="No space left"):
        writer.write_shard(tmp_path, plan, 1, data[4:8], {})
    assert contents.missing_shards(tmp_path, plan) == [1]


def test_several_writers_of_different_shards(tmp_path: Path, plan: Plan, values: Values) -> None:
    data = values(plan)
    writer.begin(tmp_path, plan)

    def work(k: int) -> None:
        start, stop = plan.shard_range(k)
        writer.write_shard(tmp_path, plan, k, data[start:stop], {})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finish(tmp_path, plan)
    assert reader.open_archive(tmp_path).read(range(10), range(5)).tobytes() == data.tobytes()


def test_a_shard_that_was_taken_over_is_not_recorded(tmp_path: Path, plan: Plan, values: Values) -> None:
    writer.begin(tmp_path, plan)
    with pytest.raises(InUseError, match="shard 0 was taken over by another process, and is left to it"):
        writer.write_shard(tmp_path, plan, 0, values(plan)[:4], {}, lambda: False)
    assert contents.missing_shards(tmp_path, plan) == [0, 1, 2]


def test_who_was_taken_over_spares_a_finished_archive(tmp_path: Path, plan: Plan, values: Values) -> None:
    data = values(plan)
    writer.begin(tmp_path, plan)
    for k in range(plan.shards):
        writer.write_shard(tmp_path, plan, k, data[slice(*plan.shard_range(k))], {})
    writer.finish(tmp_path, plan)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InUseError, match="shard 0 was taken over by another process, and is left to it"):
        writer.write_shard(tmp_path, plan, 0, data[4:8], {}, lambda: False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Nor is one begun anew of which only what readers need is there.
    (tmp_path / "plan.json").unlink()
    with pytest.raises(InputError, match=r"has a manifest but no plan\.json; a repair puts it back"):
        writer.begin(tmp_path, dataclasses.replace(plan, seed=plan.seed + 1))
    assert reader.open_archive(tmp_path).read(range(10), range(5)).tobytes() == data.tobytes()


def test_an_archive_in_the_making_tells_its_rate(tmp_path: Path, plan: Plan, values: Values) -> None:
    """Of all workers together: trajectories after the oldest of the newest records, over the time since."""
    writer.begin(tmp_path, plan)
    for k, when in ((0, 1000.0), (1, 1008.0)):
        start, stop = plan.shard_range(k)
        writer.write_shard(tmp_path, plan, k, values(plan)[start:stop], {})
        os.utime(contents.record_path(tmp_path, k), (when, when))
    with Claims(tmp_path) as claims:
        claims.take("000002")
        found = contents.describe(tmp_path)
        assert (found["shards_claimed"], found["per_second"]) == (1, 4 / 8)
    writer.write_shard(tmp_path, plan, 2, values(plan)[8:], {})
    writer.finish(tmp_path, plan)
    found = contents.describe(tmp_path)
    assert (found["state"], found["shards_claimed"], found["per_second"]) == ("complete", 0, 0)


def test_what_is_said_of_the_teacher_stays(tmp_path: Path, plan: Plan, grown: Plan, values: Values) -> None:
    """It decides nothing, so others may go on who say it differently; a grown archive says it anew."""
    generate(tmp_path, plan, values(plan))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = {**plan.teacher, "licence": "other", "source": "elsewhere"}
    generate(tmp_path, dataclasses.replace(plan, teacher=other), values(plan))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    generate(tmp_path, dataclasses.replace(grown, teacher=other), values(grown))
    assert contents.read_manifest(tmp_path)[0].teacher["licence"] == "other"
