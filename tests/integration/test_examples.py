"""examples/: the notebook does what it shows, with less training, and the scripts find what they import."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import matplotlib
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_notebook_learns_to_sample_in_one_step() -> None:
    matplotlib.use("Agg")
    notebook = json.loads((EXAMPLES / "koopman_in_2d.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code, count = re.subn(r"(?m)^STEPS = \d+", "STEPS = 400", "\n".join(sources))
    assert count == 1
    assert "hkdpipe" not in code
    names: dict[str, Any] = {}
    exec(compile(code, "koopman_in_2d.ipynb", "exec"), names)

    def error(points: str) -> float:
        distance: float = (names[points] - names["ends"]).square().sum(dim=1).mean().sqrt().item()
        return distance

    assert error("one_step") < 0.15  # the mean of the data: 0.6
    assert error("one_step") < error("without") / 1.5
    assert all(cell["outputs"] for cell in notebook["cells"] if "print(" in "".join(cell["source"]))


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_the_scripts_find_what_they_import(script: Path) -> None:
    assert callable(runpy.run_path(str(script))["rng"].unit_noise)
