import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hkdpipe.manifests.ground.errors import Interrupted, InUseError
from hkdpipe.pipeline.configuration.run_directory import Change
from hkdpipe.pipeline.configuration.run_record import read_record, record_changes, recorded
from hkdpipe.stages.shared.reporting import Summary


def no_warning(text: str) -> None:
    raise AssertionError(text)


def fails(error: BaseException) -> Callable[[], Summary]:
    def work() -> Summary:
        raise error

    return work


def entry(path: Path) -> Any:
    return read_record(path, no_warning)["stages"].get("training")


def test_how_a_stage_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    def work() -> Summary:
        assert entry(path)["state"] == "running"
        return Summary("training", ())

    with pytest.raises(Interrupted):
        recorded(path, "training", fails(Interrupted("at step 5")), no_warning)
    assert entry(path)["state"] == "interrupted"
    with pytest.raises(ValueError, match="wrong"):
        recorded(path, "training", fails(ValueError("wrong")), no_warning)
    assert (entry(path)["state"], entry(path)["error"]) == ("failed", "wrong")
    recorded(path, "training", work, no_warning)
    complete = entry(path)
    assert set(complete) == {"state", "started", "seconds", "finished"}
    assert "torch" in read_record(path, no_warning)["software"]
    # Neither finding it done nor finding it in use says anything new about it.
    recorded(path, "training", lambda: Summary("training", (), did_nothing=True), no_warning)
    with pytest.raises(InUseError):
        recorded(path, "training", fails(InUseError("in use")), no_warning)
    assert entry(path) == complete


def test_a_full_disk_does_not_hide_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"

    def work() -> Summary:
        monkeypatch.setattr(
            "hkdpipe.pipeline.configuration.run_record.write_json",
            lambda *_: (_ for _ in ()).throw(OSError(28, "full")),
        )
        raise InUseError("first")

    with pytest.raises(InUseError, match="first"):
        recorded(path, "training", work, no_warning)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1, "stages": 3, "changes": []}', '{"version": 2}']
)
def test_a_damaged_record_is_reported_and_begun_anew(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    warnings: list[str] = []
    record_changes(path, [Change("training.budget", 1, 2)], warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(str(path))
    assert warnings[0].endswith("; a new one is begun")
    (change,) = json.loads(path.read_text())["changes"]
    assert (change["key"], change["from"], change["to"]) == ("training.budget", 1, 2)
