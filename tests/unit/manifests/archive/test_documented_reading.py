"""What docs/ARCHIVE.md shows for other programs is run as it stands, on archives of every kind."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.plan.plan import Plan

DOCUMENT = Path(__file__).parents[4] / "docs" / "ARCHIVE.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
PLACE = Path("runs/digits/trajectories")


def run(word: str, **names: Any) -> dict[str, Any]:
    """Run the only snippet with `word` in it; returns the names it leaves."""
    (snippet,) = [snippet for snippet in SNIPPETS if word in snippet]
    names["np"] = np
    exec(compile(snippet, str(DOCUMENT), "exec"), names)
    return names


KINDS = [("states", "none"), ("residual", "none"), ("residual", "lz4"), ("quantised", "zstd")]


@pytest.mark.parametrize(("encoding", "codec"), KINDS)
def test_the_documented_ways_to_read(
    tmp_path: Path, plan: Plan, write: Any, encoding: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(plan, encoding=encoding, codec=codec)
    monkeypatch.chdir(tmp_path)
    stored = write(PLACE, plan)
    if codec == "none":
        read_state = run("read_state")["read_state"]
        for index, state in ((0, 0), (9, 4), (6, 2)):
            assert np.array_equal(read_state(PLACE, index, state), stored[index, state])
    found = run("open_group" if plan.form == "zarr" else "WebDataset")
    if plan.form == "webdataset" and codec != "none":
        dtype = {"residual": "float16", "quantised": "int16"}[encoding]
        found |= run("decompress", sample=found["sample"], dtype=dtype, shape=plan.states_shape)
    trajectory = found["trajectory"]
    if encoding != "quantised":
        assert np.array_equal(trajectory, stored[9])
    assert found["label"] == (plan.labels([9])[0] if plan.classes else None)
    with open_archive(PLACE) as archive:
        states = archive.read([9], range(5))[0]
    decoding = {"residual": "trajectory[1:].astype", "quantised": "cumsum"}.get(encoding)
    if decoding:
        decoded = run(decoding, trajectory=trajectory, sigmas=plan.sigmas)["states"]
        assert decoded.dtype == states.dtype
        assert decoded.tobytes() == states.tobytes()
