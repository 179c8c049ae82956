"""Compressed archives, against zarr's, webdataset's and numcodecs' own ways to write and read them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive import contents, writer
from hkdpipe.manifests.archive.reader import DamagedShard, open_archive, read_shard
from hkdpipe.manifests.forms.codecs import LEVELS, pack, unpack
from hkdpipe.manifests.ground.atomic_files import sha256_file, write_json
from hkdpipe.manifests.ground.errors import HkdpipeError, InputError, UsageError
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.manifests.plan.plan import CODECS, Plan

Write = Callable[[Path, Plan], NDArray[Any]]
KINDS = [("states", "bfloat16", "zstd"), ("residual", "float32", "lz4"), ("quantised", "float16", "zstd")]


@pytest.fixture(params=KINDS, ids="-".join)
def compressed(plan: Plan, request: pytest.FixtureRequest) -> Plan:
    encoding, dtype, codec = request.param
    return dataclasses.replace(plan, encoding=encoding, dtype=dtype, codec=codec)


def in_files(plan: Plan, stored: NDArray[Any]) -> NDArray[Any]:
    """What files hold of the stored numbers, before compression: as docs/ARCHIVE.md says."""
    if plan.encoding != "quantised":
        return stored
    followers = np.concatenate([stored[:, 2:], np.zeros_like(stored[:, :1])], axis=1)
    differences = stored[:, 1:].astype(np.int32) - followers.astype(np.int32)
    return np.concatenate(
        [stored[:, :1], differences.astype(np.uint32).astype(np.uint16).view(np.int16)], axis=1
    )


def compressor(plan: Plan) -> numcodecs.Blosc:
    level = {"lz4": 9, "zstd": 2}[plan.codec]
    shuffle = numcodecs.Blosc.BITSHUFFLE
    return numcodecs.Blosc(plan.codec, level, shuffle, typesize=plan.stored_dtype.itemsize)


def test_every_codec_has_a_level() -> None:
    assert ("none", *LEVELS) == CODECS


def test_plain_readers_see_what_is_stored(tmp_path: Path, compressed: Plan, write: Write) -> None:
    expected = in_files(compressed, write(tmp_path, compressed))
    if compressed.form == "zarr":
        import zarr

        group: Any = zarr.open_group(tmp_path, mode="r")
        found = group["states"][:]
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
        return
    import webdataset

    paths = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    for i, sample in enumerate(webdataset.WebDataset(paths, shardshuffle=False).decode()):
        assert sample["json"] == {"index": i, "seed": compressed.seed}
        assert numcodecs.blosc.decompress(sample["states.blosc"]) == expected[i].tobytes()


def test_shards_are_those_of_the_forms_own_writers(tmp_path: Path, compressed: Plan, write: Write) -> None:
    expected = in_files(compressed, write(tmp_path / "ours", compressed))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if compressed.form == "zarr":
        import zarr

        for name, content in contents.metadata(compressed).items():
            (theirs / name).parent.mkdir(exist_ok=True)
            (theirs / name).write_bytes(content)
        group: Any = zarr.open_group(theirs)
        group["states"][:] = expected
    else:
        import webdataset

        for k in range(compressed.shards):
            options = {"mtime": 0, "user": "hkdpipe", "group": "hkdpipe", "mode": 0o444}
            with webdataset.TarWriter(str(theirs / f"shard-{k:06d}.tar"), **options) as writer:
                for i in range(*compressed.shard_range(k)):
                    labels = compressed.labels([i])
                    sample = {"__key__": f"{i:09d}", "json": {"index": i, "seed": compressed.seed}}
                    sample["states.blosc"] = compressor(compressed).encode(expected[i].tobytes())
                    writer.write(sample if labels is None else {**sample, "cls": int(labels[0])})
    for k in range(compressed.shards):
        file = contents.FORMS[compressed.form].shard_file(k)
        assert (tmp_path / "ours" / file).read_bytes() == (theirs / file).read_bytes()


def test_states_are_those_of_an_archive_that_is_not_compressed(
    tmp_path: Path, plan: Plan, compressed: Plan, write: Write
) -> None:
    stored = write(tmp_path / "compressed", compressed)
    rows = np.array([9, 4, 4, 0, 7, 3])
    columns = np.array([[0, 1, 2], [4, 3, 0], [2, 2, 4], [1, 0, 0], [0, 0, 0], [4, 1, 3]])
    if compressed.encoding == "quantised":
        noise = stored[:, :1].view(np.float16).astype(np.float32)
        levels = np.array(compressed.sigmas, np.float32)[:, None, None, None]
        whole = stored.astype(np.float32) / 1024 + levels * noise
        whole[:, :1] = levels[0] * noise
    else:
        write(tmp_path / "raw", dataclasses.replace(compressed, codec="none"))
        with open_archive(tmp_path / "raw") as raw:
            whole = raw.read(range(10), range(5))
    for place in (tmp_path / "compressed", (tmp_path / "compressed").as_uri()):
        with open_archive(place) as opened:
            assert opened.read(range(10), range(5)).tobytes() == whole.tobytes()
            assert opened.read(rows, columns).tobytes() == whole[rows[:, None], columns].tobytes()
            assert opened.read([], [1]).shape == (0, 1, 2, 3, 4)
            assert opened.read(rows, []).shape == (6, 0, 2, 3, 4)


def test_a_grown_archive_is_the_one_made_at_once(tmp_path: Path, compressed: Plan, write: Write) -> None:
    grown = dataclasses.replace(compressed, count=15)
    write(tmp_path / "grown", compressed)
    for name in ("grown", "at once"):
        write(tmp_path / name, grown)
    one, other = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "grown", tmp_path / "at once")
    )
    assert one == other


def test_records_say_nothing_of_places(tmp_path: Path, plan: Plan, compressed: Plan, write: Write) -> None:
    for its_plan in (plan, compressed):
        write(tmp_path / its_plan.codec, its_plan)
    raw, packed = (contents.read_manifest(tmp_path / its_plan.codec)[1][0] for its_plan in (plan, compressed))
    assert {"offset", "stride"} <= raw.to_json().keys()
    assert not {"offset", "stride"} & packed.to_json().keys()
    assert not contents.fits(plan, 0, dataclasses.replace(raw, offset=None, stride=None))
    assert not contents.fits(plan, 0, dataclasses.replace(raw, stride=None))
    assert contents.fits(compressed, 0, packed)
    assert not contents.fits(compressed, 0, dataclasses.replace(packed, offset=0, stride=500))
    assert not contents.fits(compressed, 0, dataclasses.replace(packed, stride=500))


def test_differences_may_wrap(plan: Plan) -> None:
    quantised = dataclasses.replace(plan, encoding="quantised", codec="lz4")
    numbers = np.random.default_rng(0).integers(-(2**15), 2**15, plan.states_shape).astype(np.int16)
    numbers[1:4:2], numbers[2:5:2] = 32767, -32768
    before = numbers.copy()
    assert unpack(quantised, bytes(pack(quantised, numbers))).tobytes() == before.tobytes()
    assert numbers.tobytes() == before.tobytes()


def test_another_payload_is_refused(plan: Plan) -> None:
    compressed = dataclasses.replace(plan, codec="zstd")
    numbers = np.random.default_rng(0).normal(size=plan.states_shape).astype(np.float16)
    payload = bytes(pack(compressed, numbers))
    longer = bytes(pack(compressed, np.concatenate([numbers, numbers])))
    shorter = bytes(pack(compressed, numbers[1:]))
    wrong = [payload + b"x", longer, shorter, bytes(len(payload))]
    wrong += [payload[:size] for size in (0, 8, 16, -1)]
    for other in wrong:
        with pytest.raises(ValueError, match=f"not 240 bytes compressed to {len(other)}"):
            unpack(compressed, other)
    whole = bytes(pack(compressed, np.zeros(plan.states_shape, np.float16)))
    with pytest.raises(ValueError, match="error during blosc decompression"):
        unpack(compressed, whole[:16] + b"\xff" * (len(whole) - 16))
    with pytest.raises(ValueError, match="cannot reshape array of size 119"):
        unpack(plan, numbers.tobytes()[:-2])


def forge(root: Path, change: Callable[[bytearray], None]) -> None:
    """Change shard 1, and the manifest so that it fits."""
    values = json.loads((root / "manifest.json").read_text())
    path = root / values["shards"][1]["file"]
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    values["shards"][1]["sha256"] = sha256_file(path)
    values["sha256"] = digest({key: values[key] for key in ("plan", "shards")})
    write_json(root / "manifest.json", values)


@pytest.mark.parametrize("value", [0x00, 0x20, 0x7F, 0xFF])
def test_files_that_lie_about_places_are_damaged(
    tmp_path: Path, plan: Plan, write: Write, value: int
) -> None:
    """An index, or a header's length, of a shard whose SHA-256 is right: not a crash, and not a huge read."""
    write(tmp_path, dataclasses.replace(plan, codec="lz4"))

    def change(content: bytearray) -> None:
        before = (2 * (1 + bool(plan.classes)) + 1) * 512  # of the first trajectory's states in a tar
        place = slice(-68, -4) if plan.form == "zarr" else slice(before - 512 + 124, before - 512 + 135)
        content[place] = bytes([value]) * len(content[place])

    forge(tmp_path, change)
    with open_archive(tmp_path) as opened:
        with pytest.raises(DamagedShard, match=r"shard 1 \(.*\) (does not hold|ends early)"):
            opened.read([5], [1])
        with pytest.raises(InputError, match=r"shard 1 \(.*\) (does not hold|ends early)"):
            read_shard(tmp_path, opened.plan, opened.shards[1], range(4, 8))


def test_an_archive_keeps_its_codec(tmp_path: Path, plan: Plan, compressed: Plan, write: Write) -> None:
    assert "codec" not in plan.to_json()
    assert compressed.to_json()["codec"] == compressed.codec
    raw = dataclasses.replace(plan, encoding="residual")
    write(tmp_path, raw)
    with pytest.raises(UsageError, match="codec: this archive has 'none', now 'lz4'"):
        writer.begin(tmp_path, dataclasses.replace(raw, codec="lz4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "gzip"}, '^codec: got \'gzip\'; accepted: "none", "lz4", "zstd"'),
        ({"encoding": "quantised"}, '^codec: got \'none\'; accepted: "lz4", "zstd" where'),
        ({"encoding": "quantised", "codec": "lz4", "dtype": "float32"}, "^dtype: got 'float32'; accepted"),
    ],
)
def test_what_cannot_be_compressed_is_refused(plan: Plan, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(plan, **change)


def test_quantised_trajectories_without_noise_are_refused(tmp_path: Path, plan: Plan, values: Any) -> None:
    plan = dataclasses.replace(plan, encoding="quantised", codec="lz4")
    stored = values(plan)[4:8]
    stored[2, 0, 0, 1, 1] = np.array(np.nan, np.float16).view(np.int16)
    writer.begin(tmp_path, plan)
    with pytest.raises(HkdpipeError, match="trajectory 6 is not finite or 32 and more off its noise"):
        writer.write_shard(tmp_path, plan, 1, stored, {})


def test_zarr_shard_not_written_decodes_to_nan(tmp_path: Path, plan: Plan, values: Any) -> None:
    import zarr

    plan = dataclasses.replace(plan, form="zarr", encoding="quantised", codec="lz4")
    writer.begin(tmp_path, plan)
    group: Any = zarr.open_group(tmp_path, mode="r")
    assert np.isnan(group["states"][0][0].view(np.float16)).all()
