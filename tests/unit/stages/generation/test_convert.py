import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hkdpipe.manifests.archive import contents
from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import InputError, Interrupted, UsageError
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.generation.convert import convert
from hkdpipe.stages.generation.generate import claim_of
from hkdpipe.stages.shared.reporting import Silent, Summary
from hkdpipe.stages.training.train import training_identity
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.settings.training_settings import TrainingSettings


def run(source: Path, out: Path, form: str = "webdataset", stops_before: int = 99) -> Summary:
    asked = iter(range(99))
    return convert(source, out, form, reporter=Silent(), stop=lambda: next(asked) >= stops_before)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(params=[("states", "none"), ("residual", "none"), ("quantised", "zstd")], ids="-".join)
def source(tmp_path: Path, plan: Plan, write_shards: Any, request: pytest.FixtureRequest) -> Path:
    encoding, codec = request.param
    write_shards(tmp_path / "source", dataclasses.replace(plan, encoding=encoding, codec=codec), plan.shards)
    return tmp_path / "source"


def test_there_and_back_again_gives_the_same_files(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "tar")
    run(tmp_path / "tar", tmp_path / "zarr", "zarr")
    assert content(tmp_path / "zarr") == content(source)


def test_the_other_form_is_the_same_to_its_readers(tmp_path: Path, source: Path, plan: Plan) -> None:
    summary = run(source, tmp_path / "tar")
    assert (summary.data["written"], summary.data["missing"]) == (3, 0)
    with open_archive(source) as before, open_archive(tmp_path / "tar") as after:
        assert after.plan == dataclasses.replace(before.plan, form="webdataset")
        assert after.read(range(12), range(5)).tobytes() == before.read(range(12), range(5)).tobytes()
        settings = (TrainingSettings(perceptual="none"), HkdOptions())
        assert training_identity(after, *settings) == training_identity(before, *settings)


def test_a_training_sees_no_difference_in_compression(tmp_path: Path, plan: Plan, write_shards: Any) -> None:
    settings = (TrainingSettings(perceptual="none"), HkdOptions())
    identities = set()
    for codec in ("none", "lz4"):
        write_shards(tmp_path / codec, dataclasses.replace(plan, codec=codec), plan.shards)
        with open_archive(tmp_path / codec) as opened:
            identities.add(training_identity(opened, *settings))
            assert opened.read([7], [0, 3])[0, :, 0, 0, 0].tolist() == [70, 73]
    assert len(identities) == 1


def test_a_stopped_conversion_goes_on_where_it_was(tmp_path: Path, source: Path) -> None:
    with pytest.raises(Interrupted, match="before shard 3 of 3"):
        run(source, tmp_path / "tar", stops_before=2)
    assert not (tmp_path / "tar" / "manifest.json").exists()
    assert run(source, tmp_path / "tar").data["written"] == 1
    assert run(source, tmp_path / "tar").did_nothing
    run(source, tmp_path / "whole")
    assert content(tmp_path / "tar") == content(tmp_path / "whole")


def test_shards_that_others_write_are_left_to_them(tmp_path: Path, source: Path, plan: Plan) -> None:
    out = tmp_path / "tar"
    with Claims(out) as others:
        assert others.take(claim_of(1))
        assert run(source, out).data["missing"] == 1
    assert contents.missing_shards(out, contents.planned(out)) == [1]
    assert run(source, out).data["written"] == 1


def test_damage_is_not_converted(tmp_path: Path, source: Path) -> None:
    path = source / contents.read_manifest(source)[1][1].file
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard 1 .* is damaged"):
        run(source, tmp_path / "tar")
    assert contents.missing_shards(tmp_path / "tar", contents.planned(tmp_path / "tar")) == [1, 2]


def test_what_is_not_a_conversion_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match="form: got zarr, which is the form of"):
        run(source, tmp_path / "zarr", "zarr")
    with pytest.raises(UsageError, match="form: this archive has 'zarr', now 'webdataset'"):
        run(source, source)
