"""Archives as other programs see them: plain zarr and plain webdataset."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive import contents, reader, writer
from hkdpipe.manifests.forms import zarr_form
from hkdpipe.manifests.forms.codecs import pack
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import STATE_TYPES, decode

Write = Callable[[Path, Plan], NDArray[Any]]
# Of seed 7 and classes 0, 7, 3; they are in every archive of this kind, and may never change.
LABELS = [3, 0, 0, 0, 3, 0, 0, 7, 3, 0, 0, 0, 7, 0, 0]


def read_plainly(root: Path, plan: Plan) -> NDArray[Any]:
    if plan.form == "zarr":
        import zarr

        return np.asarray(zarr.open_group(root, mode="r")["states"][:])  # type: ignore[index]
    import webdataset

    paths = [str(path) for path in sorted(root.glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(plan.count)]
    assert [sample["json"] for sample in samples] == [
        {"index": i, "seed": plan.seed} for i in range(plan.count)
    ]
    assert all(("cls" in sample) == bool(plan.classes) for sample in samples)
    return np.stack([sample["states.npy"] for sample in samples])


def read_labels_plainly(root: Path, plan: Plan) -> list[int]:
    if plan.form == "zarr":
        import zarr

        return np.asarray(zarr.open_group(root, mode="r")["labels"][:]).tolist()  # type: ignore[index]
    import webdataset

    paths = [str(path) for path in sorted(root.glob("*.tar"))]
    return [sample["cls"] for sample in webdataset.WebDataset(paths, shardshuffle=False).decode()]


@pytest.mark.parametrize("plan", [(0, 7, 3)], indirect=True)
def test_plain_readers_see_the_labels(tmp_path: Path, plan: Plan, grown: Plan, write: Write) -> None:
    for now in (plan, grown):
        write(tmp_path, now)
        assert read_labels_plainly(tmp_path, now) == [LABELS[i] for i in range(now.count)]


@pytest.mark.parametrize("dtype", STATE_TYPES)
@pytest.mark.parametrize("count", [1, 8, 9, 10])
def test_plain_readers_and_read_agree(
    tmp_path: Path, plan: Plan, write: Write, dtype: str, count: int
) -> None:
    plan = dataclasses.replace(plan, dtype=dtype, count=count)
    data = write(tmp_path, plan)
    plain = read_plainly(tmp_path, plan)
    assert plain.dtype == data.dtype
    assert plain.shape == data.shape
    assert plain.tobytes() == data.tobytes()
    with reader.open_archive(tmp_path) as opened:
        assert opened.read(range(count), range(5)).tobytes() == decode(data, dtype).tobytes()


def test_shards_are_those_of_the_forms_own_writers(tmp_path: Path, plan: Plan, write: Write) -> None:
    data = write(tmp_path / "ours", plan)
    (tmp_path / "theirs").mkdir()
    write_plainly(tmp_path / "theirs", plan, data)
    files = [path.relative_to(tmp_path / "theirs") for path in (tmp_path / "theirs").rglob("*.*")]
    files += [Path(name) for k in range(3) for name in contents.shard_files(plan, k)]
    assert len(set(files)) == {"zarr": (9 if plan.classes else 5), "webdataset": 3}[plan.form]
    for file in files:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def write_plainly(root: Path, plan: Plan, data: NDArray[Any]) -> None:
    labels = np.array(LABELS[: plan.count])
    if plan.form == "zarr":
        import zarr

        for name, content in contents.metadata(plan).items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
        group: Any = zarr.open_group(root)
        group["states"][:] = data
        if plan.classes:
            group["labels"][:] = labels
        return
    import webdataset

    for k in range(plan.shards):
        path = str(root / f"shard-{k:06d}.tar")
        with webdataset.TarWriter(path, mtime=0, user="hkdpipe", group="hkdpipe", mode=0o444) as writer:
            for i in range(*plan.shard_range(k)):
                label = {"cls": int(labels[i])} if plan.classes else {}
                about = {"index": i, "seed": plan.seed}
                writer.write({"__key__": f"{i:09d}", "json": about, "states.npy": data[i], **label})


def test_plain_readers_after_growth(tmp_path: Path, plan: Plan, grown: Plan, write: Write) -> None:
    write(tmp_path, plan)
    data = write(tmp_path, grown)
    assert read_plainly(tmp_path, grown).tobytes() == data.tobytes()


def test_offset_and_stride_are_true(tmp_path: Path, plan: Plan, write: Write) -> None:
    data = write(tmp_path, plan)
    for shard in reader.open_archive(tmp_path).shards:
        content = (tmp_path / shard.file).read_bytes()
        assert len(content) == shard.bytes
        for i in range(shard.stop - shard.start):
            begin = shard.offset + i * shard.stride
            assert content[begin : begin + plan.trajectory_bytes] == data[shard.start + i].tobytes()


def test_shards_are_byte_reproducible(tmp_path: Path, plan: Plan, write: Write) -> None:
    write(tmp_path / "a", plan)
    write(tmp_path / "b", plan)
    first, second = (
        {p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file()} for r in roots(tmp_path)
    )
    assert first == second
    # A Zarr array of labels: its metadata and three chunks.
    assert len(first) == {"zarr": 14 if plan.classes else 10, "webdataset": 8}[plan.form]


def roots(folder: Path) -> tuple[Path, Path]:
    return folder / "a", folder / "b"


def test_zarr_shard_not_written_reads_as_nan(tmp_path: Path, plan: Plan, values: Any) -> None:
    plan = dataclasses.replace(plan, form="zarr")
    writer.begin(tmp_path, plan)
    writer.write_shard(tmp_path, plan, 1, values(plan)[4:8], {})
    plain = read_plainly(tmp_path, plan)
    assert np.isnan(plain[:4]).all()
    assert np.isnan(plain[8:]).all()
    assert plain[4:8].tobytes() == values(plan)[4:8].tobytes()


def test_zarr_notices_a_flipped_bit(tmp_path: Path, plan: Plan, write: Write) -> None:
    plan = dataclasses.replace(plan, form="zarr")
    write(tmp_path, plan)
    path = tmp_path / zarr_form.shard_file(1)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        read_plainly(tmp_path, plan)


def test_beginning_again_writes_nothing(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(plan, form="zarr")
    writer.begin(tmp_path, plan)
    written: list[str] = []
    monkeypatch.setattr(writer, "write_atomic", lambda path, *data: written.append(path.name))
    writer.begin(tmp_path, plan)
    assert written == []
    (tmp_path / "states/zarr.json").write_bytes(b"torn")
    writer.begin(tmp_path, plan)
    assert written == ["zarr.json"]


def test_big_endian_states_are_stored_little_endian(plan: Plan, values: Any) -> None:
    trajectory = values(plan)[0]
    assert bytes(pack(plan, trajectory.astype(">f2"))) == trajectory.tobytes()


def test_reading_needs_no_torch_nor_the_forms_libraries(tmp_path: Path, plan: Plan, write: Write) -> None:
    write(tmp_path, plan)
    script = """
import sys
from hkdpipe.manifests.archive.reader import open_archive
open_archive(sys.argv[1]).read([0], [0])
print([name for name in ("torch", "zarr", "webdataset", "click") if name in sys.modules])
"""
    command = [sys.executable, "-c", script, tmp_path]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
