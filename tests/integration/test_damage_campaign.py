"""Whatever is damaged in an archive, verify finds it, and repairing gives back the bytes there were."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from commands import Called, succeeded
from test_killed_at_random import content, different
from tiny import GENERATION, WORK, Inputs

from hkdpipe.stages.generation.check_archive import Depth, verify
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.shared.reporting import Silent

# Two whole shards, so that shards of one length can be exchanged, and a shorter one.
SETTINGS = replace(GENERATION, count=10, shard_size=4, batch_size=4, steps=2)

# Heun's method leads a teacher that was never trained further in two steps than quantised residuals reach.
COMPRESSED = {"encoding": "quantised", "codec": "zstd", "solver": "euler"}


@dataclass
class Victim:
    """An archive to be damaged, and one of the same plan but for the seed."""

    root: Path
    stranger: Path
    chance: random.Random

    def files(self, kind: str) -> list[str]:
        """The paths of a kind of files, relative to the archive, in the order of the shards."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(PATTERNS[kind]))

    def a_file(self) -> Path:
        """Of any kind there is in this form: each as likely as another."""
        kinds = [kind for kind in PATTERNS if self.files(kind)]
        return self.root / self.chance.choice(self.files(self.chance.choice(kinds)))


PATTERNS = {
    "zarr shards": "states/c/*/0/0/0/0",
    "tar shards": "*.tar",
    "labels": "labels/c/*",
    "metadata": "**/zarr.json",
    "records": "records/*.json",
    "plan": "plan.json",
    "manifest": "manifest.json",
}
SHARDS = ("zarr shards", "tar shards", "labels")
TWICE = ("records", *SHARDS)


def flip(victim: Victim) -> str:
    path = victim.a_file()
    data = bytearray(path.read_bytes())
    place, bit = victim.chance.randrange(len(data)), victim.chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"{path.name}: bit {bit} of byte {place}"


def truncate(victim: Victim) -> str:
    path = victim.a_file()
    data = path.read_bytes()
    length = victim.chance.choice([0, len(data) - 1, victim.chance.randrange(len(data))])
    path.write_bytes(data[:length])
    return f"{path.name}: {length} of {len(data)} bytes"


def extend(victim: Victim) -> str:
    path = victim.a_file()
    more = victim.chance.choice([b"\n", b"\0" * 512, victim.chance.randbytes(5)])
    path.write_bytes(path.read_bytes() + more)
    return f"{path.name}: and {more!r}"


def delete(victim: Victim) -> str:
    path = victim.a_file()
    path.unlink()
    return path.name


def exchange(victim: Victim) -> str:
    names = victim.files(victim.chance.choice([kind for kind in TWICE if victim.files(kind)]))
    one, other = (victim.root / name for name in victim.chance.sample(names, 2))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    return f"{one.relative_to(victim.root)} and {other.relative_to(victim.root)}"


def copy_from_another_shard(victim: Victim) -> str:
    names = victim.files(victim.chance.choice([kind for kind in TWICE if victim.files(kind)]))
    one, other = victim.chance.sample(names, 2)
    shutil.copyfile(victim.root / one, victim.root / other)
    return f"{one} to {other}"


def edit(victim: Victim) -> str:
    """Another value in a JSON file, or a key less, or one more, written as hkdpipe writes it."""
    kind = victim.chance.choice(["records", "plan", "manifest"])
    path = victim.root / victim.chance.choice(victim.files(kind))
    values = json.loads(path.read_text())
    place = victim.chance.choice(list(places(values)))
    parent: Any = values
    for key in place[:-1]:
        parent = parent[key]
    change = victim.chance.choice(["value", "value", "remove", "add"])
    if change == "value":
        parent[place[-1]] = another(parent[place[-1]])
    elif change == "remove":
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent["more"] = 1
    else:
        parent.insert(place[-1], parent[place[-1]])
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return f"{path.name}: {change} {place}"


def places(values: Any, start: tuple[Any, ...] = ()) -> Any:
    """The keys, one below the other, of every value in a JSON value."""
    keys = values.keys() if isinstance(values, dict) else range(len(values))
    for key in keys:
        yield (*start, key)
        if isinstance(values[key], dict | list):
            yield from places(values[key], (*start, key))


def another(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value.replace("a", "b") if "a" in value else value + "0"
    return [] if value else [1]


def take_from_another_archive(victim: Victim) -> str:
    """A shard with its record or without, a record, the plan or the manifest."""
    kinds = [kind for kind in PATTERNS if kind != "metadata" and victim.files(kind)]
    kind = victim.chance.choice(kinds)
    name = victim.chance.choice(victim.files(kind))
    names = [name]
    if kind in SHARDS and victim.chance.random() < 0.5:
        names.append(victim.files("records")[victim.files(kind).index(name)])
    for each in names:
        shutil.copyfile(victim.stranger / each, victim.root / each)
    return " and ".join(names)


FAULTS: tuple[Callable[[Victim], str], ...] = (
    flip,
    flip,
    truncate,
    extend,
    delete,
    exchange,
    copy_from_another_shard,
    edit,
    edit,
    take_from_another_archive,
)


class Heard(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def check(root: Path, depth: Depth, repair: bool = False) -> tuple[str, list[str]]:
    """What is said of an archive: in a word, and in lines."""
    reporter = Heard()
    summary = verify(root, depth, repair, None, **{**WORK, "reporter": reporter})
    assert summary.data["notes"] == []
    return summary.data["state"], reporter.lines


def sizes(files: dict[str, bytes]) -> dict[str, Any]:
    """What a look at names and sizes alone sees of shards; of the rest, which is small, everything."""
    small = ("records/", "plan.json", "manifest.json")
    return {
        name: data if name.startswith(small) or name.endswith("zarr.json") else len(data)
        for name, data in files.items()
    }


@pytest.mark.parametrize(
    "faults", [10, pytest.param(125, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
@pytest.mark.parametrize("form", ["zarr", "webdataset"])
@pytest.mark.parametrize(
    ("kind", "stored"),
    [("inputs", {}), ("conditional", {}), ("conditional", COMPRESSED)],
    ids=["inputs", "conditional", "compressed"],
)
def test_every_fault_is_found_and_repaired(
    kind: str,
    stored: dict[str, str],
    form: str,
    faults: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    called: Called,
) -> None:
    inputs: Inputs = request.getfixturevalue(kind)
    seed = random.randrange(10**6)
    victim = Victim(tmp_path / "archive", tmp_path / "stranger", random.Random(seed))
    for number, root in enumerate((victim.root, victim.stranger)):
        generate(str(inputs.teacher), root, replace(SETTINGS, format=form, seed=number, **stored), **WORK)
    before = content(victim.root)
    done: Counter[str] = Counter()
    while done.total() < faults:
        fault = victim.chance.choice(FAULTS)
        what = f"seed {seed}: {fault.__name__}: {fault(victim)}"
        damaged = content(victim.root)
        if damaged == before:
            continue  # two shards may have the same labels
        if done.total() % 40 == 0:
            ran = called("verify", str(victim.root), "--quiet")
            assert ran.code == (0 if "manifest.json" not in damaged else 3), f"{what}: {ran.err}"
            succeeded(called("verify", str(victim.root), "--repair", "--quiet"))
        elif damaged.keys() ^ before.keys() == {"manifest.json"}:
            # Put together again from the records, which takes no teacher.
            state, lines = check(victim.root, "checksums")
            assert state == "good", what
            assert lines == [
                f"{victim.root}: manifest.json was missing, and was put together from the records"
            ]
        else:
            seen_by_fast = sizes(damaged) != sizes(before)
            state, _ = check(victim.root, "fast")
            assert state == ("damaged" if seen_by_fast else "good"), what
            state, lines = check(victim.root, "checksums")
            assert state == "damaged", what
            assert all(line.startswith(str(victim.root)) for line in lines), what
            assert content(victim.root) == damaged, what
            assert check(victim.root, "checksums", repair=True)[0] == "repaired", what
        assert not different(content(victim.root), before), what
        done[fault.__name__] += 1
    assert check(victim.root, "deep") == ("good", [])
    print(f"\nseed {seed}, {kind}, {form}: {faults} faults found and repaired: {dict(done)}")
