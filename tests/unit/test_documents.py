"""The documents name what is there: modules, methods, keys, files, and code that can be copied."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hkdpipe.pipeline.configuration.config import sections
from hkdpipe.stages.settings import metrics
from hkdpipe.trainer.settings.method_registry import methods

ROOT = Path(__file__).parents[2]
FLOORS = ("hkdpipe", "pipeline", "stages", "trainer", "manifests")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
# These name what was.
STANDING = [page for page in PAGES if page.name != "CHANGELOG.md"]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table's rows."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def listed(text: str, floor: str) -> list[str]:
    """What a floor's table of modules names, with its folders, in the order of the table."""
    table = text.split(f"\n### `{floor}/`\n", 1)[1].split("\n#", 1)[0]
    room, found = "", []
    for cells in [*rows(table)][1:]:
        for name in re.findall(r"`([^`]+)`", cells[0]):
            if name.endswith("/"):
                room = name
            found.append(room if name.endswith("/") else room + name)
    return found


def there(floor: str) -> list[str]:
    """The same of the tree: modules, and folders with a slash."""
    files = [path.relative_to(ROOT / floor).with_suffix("") for path in (ROOT / floor).rglob("*.py")]
    names = [f"{file.parent}/" if file.name == "__init__" else str(file) for file in files]
    return sorted(name for name in names if name != "./")


@pytest.mark.parametrize("floor", FLOORS)
def test_the_tables_of_modules_are_the_tree(floor: str) -> None:
    assert sorted(listed(read("docs/ARCHITECTURE.md"), floor)) == there(floor)


@pytest.mark.parametrize("floor", FLOORS[1:])
def test_rooms_import_from_those_below_them_in_the_table(floor: str) -> None:
    order = [name.rstrip("/") for name in listed(read("docs/ARCHITECTURE.md"), floor) if name.count("/") == 1]
    order = [name for name in order if (ROOT / floor / name).is_dir()]
    for place, room in enumerate(order):
        for file in (ROOT / floor / room).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            used = set(re.findall(rf"^ *(?:from|import) hkdpipe\.{floor}\.(\w+)", text, re.MULTILINE))
            assert used & {*order[:place]} == set(), file


def test_the_table_of_methods_is_what_they_declare() -> None:
    described = {cells[0].strip("`"): cells for cells in rows(read("docs/METHODS.md"))}
    assert [*described][1:] == [*methods()]
    for name, method in methods().items():
        _, paper, *_, passes, _, _ = described[name]
        assert paper.startswith(f"{method.title}, [{method.paper}]")
        assert passes.split()[0] == str(method.evaluations(method.options()))


@pytest.mark.parametrize("page", STANDING, ids=lambda page: page.name)
def test_keys_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {section: {*cls.__dataclass_fields__} for section, cls in sections().items()}
    keys = re.findall(rf"(?:`|--set )({'|'.join(known)})\.(\w+)(?=[` =])", text)
    unknown = {f"{section}.{key}" for section, key in keys if key not in known[section]}
    files = re.findall(rf"`((?:{'|'.join(FLOORS)}|tests|docs|examples)/[\w/.-]+\.\w+)`", text)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [file for file in files if not (ROOT / file).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert (unknown, missing) == (set(), [])


def test_contributing_shows_code_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    method, metric = re.findall(r"^```python\n(.*?)^```$", read("CONTRIBUTING.md"), re.MULTILINE | re.DOTALL)
    assert method in read("trainer/methods/kd/__init__.py")
    monkeypatch.setattr(metrics, "_METRICS", metrics.metrics())
    exec(metric)
    assert "brightness" in metrics.metrics()
