"""What `import hkdpipe` promises: docs/PYTHON.md does what it says, and torch is imported when it is used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hkdpipe
from hkdpipe.manifests.ground.errors import Interrupted, UsageError

ROOT = Path(__file__).parents[2]
QUICK = "import sys, hkdpipe; hkdpipe.load_config('digits'); print('torch' in sys.modules)"


def test_the_page_does_what_it_says(folder: Path) -> None:
    page = (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for match in re.finditer(r"```python\n(.*?)```", page, re.DOTALL):
        # Blank lines before it, so that a failure shows the page's own line.
        code = "\n" * page[: match.start(1)].count("\n") + match[1]
        exec(compile(code, "docs/PYTHON.md", "exec"), names)
    assert names.keys() >= {"teacher", "states", "done", "archive", "model", "images", "edited"}
    assert (folder / "evaluation" / "export" / "model.safetensors").is_file()
    assert all(summary.did_nothing for summary in hkdpipe.run(names["config"], "runs/small").values())
    with pytest.raises(UsageError, match=r"generation\.seed: this run has 0, given 1"):
        hkdpipe.run(hkdpipe.load_config("runs/small/config.toml", generation={"seed": 1}), "runs/small")
    with pytest.raises(Interrupted):
        hkdpipe.train(names["config"], "archive", "another", stop=lambda: True, reporter=hkdpipe.Silent())


def test_every_name_is_there_and_typed_as_what_it_is() -> None:
    """What mypy reads and what the interpreter finds agree."""
    typed = {}
    for node in ast.walk(ast.parse(Path(hkdpipe.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            typed.update({alias.name: node.module for alias in node.names})
    homes = {name: f"hkdpipe.{home}" for home, names in hkdpipe._HOMES.items() for name in names.split()}
    assert homes.items() <= typed.items()
    assert sorted([*homes, "whitebox", "__version__"]) == sorted(hkdpipe.__all__) == dir(hkdpipe)
    assert all(getattr(hkdpipe, name) is not None for name in hkdpipe.__all__)
    with pytest.raises(AttributeError, match="module 'hkdpipe' has no attribute 'load_teachr'"):
        _ = hkdpipe.load_teachr


def test_neither_it_nor_a_configuration_imports_torch() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("digts", {}, "preset: no preset 'digts'; did you mean 'digits'"),
        ("digits", {"trainin": {}}, "trainin: unknown section; did you mean 'training'"),
        ("digits", {"training": 3}, r"training: got a value; accepted: a section"),
        (None, {"training": {"bugdet": 3}}, r"training\.bugdet: unknown key; did you mean 'budget'"),
    ],
)
def test_load_config_refuses(source: str | None, changes: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hkdpipe.load_config(source, **changes)


def test_load_config_takes_what_python_has() -> None:
    config = hkdpipe.load_config(None, teacher={"source": Path("here")}, training={"ema": (0.9, 0.99)})
    assert (config.teacher.source, config.training.ema) == ("here", (0.9, 0.99))
