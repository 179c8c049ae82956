"""Modules that installed packages name as plug-ins are imported, and one that fails is named."""

import sys
from pathlib import Path

import pytest

from hkdpipe.manifests.ground import discovery
from hkdpipe.manifests.ground.errors import UsageError


def install(folder: Path, module: str, code: str) -> None:
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{discovery.PLUGINS}]\n{module} = {module}\n")


def test_plug_ins_are_imported_or_named_as_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "whole_plug_in", "seen = True")
    discovery._import_plugins.__wrapped__()
    assert sys.modules.pop("whole_plug_in").seen
    install(tmp_path, "broken_plug_in", "1 / 0")
    with pytest.raises(
        UsageError, match=r"^plug-in 'broken_plug_in': cannot be imported \(division by zero\)$"
    ):
        discovery._import_plugins.__wrapped__()
