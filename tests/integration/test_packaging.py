"""The wheel, built of the source distribution as installers do: it has every file and works elsewhere."""

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from commands import run
from tiny import Inputs, whole

ROOT = Path(__file__).parents[2]
FLOORS = ("manifests", "trainer", "stages", "pipeline")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def built(source: Path, kind: str, out: Path) -> Path:
    """What setuptools, which is there already, builds of the sources."""
    hook = f"import sys, setuptools.build_meta; setuptools.build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", hook, str(out)], cwd=source, check=True, capture_output=True)
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packaging")
    for name in ("hkdpipe", *FLOORS):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "tree")
    sources = built(folder / "tree", "sdist", folder)
    with tarfile.open(sources) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return built(unpacked, "wheel", folder)


def test_the_wheel_has_every_file(wheel: Path) -> None:
    def files(folder: Path, under: str) -> set[str]:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {f"{under}{path}" for path in found if "__pycache__" not in path.parts}

    wanted = files(ROOT / "hkdpipe", "hkdpipe/").union(
        *(files(ROOT / floor, f"hkdpipe/{floor}/") for floor in FLOORS)
    )
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == wanted


@pytest.mark.slow
def test_it_works_in_another_environment(wheel: Path, inputs: Inputs, tmp_path: Path) -> None:
    """Which sees the dependencies of this one, but not its hkdpipe."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    (own,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    # A folder named here is searched, but its .pth files are not followed: the editable hkdpipe stays unseen.
    folders = [path for path in sys.path if path.endswith("site-packages")]
    (own / "dependencies.pth").write_text("\n".join(folders))

    where = run([python, "-c", "import hkdpipe; print(hkdpipe.__file__, hkdpipe.__version__)"], tmp_path)
    assert where.out.split() == [str(own / "hkdpipe" / "__init__.py"), "0.1.0"], where.err
    command = str(tmp_path / "venv" / "bin" / "hkdpipe")
    helped = run([command, "--help"], tmp_path)
    assert helped.code == 0, helped.err
    assert "hkdpipe run --preset digits" in helped.out
    done = run([python, "-m", "hkdpipe", "run", "--run-dir", "made", *whole(inputs)], tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "made" / "evaluation" / "report.html").is_file()
    loaded = (
        "import hkdpipe; print(hkdpipe.load_teacher('digits').image_shape, hkdpipe.load_config('digits'))"
    )
    used = run([python, "-c", loaded], tmp_path)
    assert used.code == 0, used.err
    assert used.out.startswith("(1, 8, 8)")
