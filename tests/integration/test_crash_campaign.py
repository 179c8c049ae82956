"""Four workers at a time, killed amid every phase of generation, make what one makes undisturbed."""

import json
import random
import sys
from pathlib import Path

import pytest
from commands import run

CAMPAIGN = Path(__file__).with_name("crash_campaign.py")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kills", "each"), [(15, 3), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_killed_workers_change_nothing(kills: int, each: int, tmp_path: Path) -> None:
    """The campaign compares every archive itself."""
    seed = str(random.randrange(10**6))
    ran = run([sys.executable, str(CAMPAIGN), "out", "--kills", str(kills), "--seed", seed], tmp_path)
    print(ran.out, ran.err)
    assert ran.code == 0, f"seed {seed}"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(report["kills"].values()) >= kills
    assert all(
        report["kills"][phase] >= each for phase in ("sampling", "writing", "fsync", "rename", "record")
    )
    assert all(report["by_form"][form] for form in ("zarr", "webdataset"))
