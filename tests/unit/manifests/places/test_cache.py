import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.places.cache import Cache, cache_of_environment
from hkdpipe.manifests.places.shard_files import BadFile, OpenFile

FILES = [bytes([i]) * 100 for i in range(8)]


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Store:
    """Where files are fetched from; `fetched` says which, in order."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def fetch(self, content: bytes) -> Callable[[], Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            self.fetched.append(content[0])
            yield content[:60]
            yield content[60:]

        return chunks

    def open(self, cache: Cache, content: bytes) -> OpenFile:
        file = cache.open(name(content), len(content), self.fetch(content))
        assert b"".join(file.chunks()) == content
        return file


@pytest.fixture
def store() -> Store:
    return Store()


def held(cache: Cache) -> list[int]:
    return [i for i, content in enumerate(FILES) if (cache.folder / name(content)).exists()]


def test_a_file_is_fetched_once_and_kept_for_the_next_process(tmp_path: Path, store: Store) -> None:
    cache = Cache(tmp_path / "new" / "cache", 1000)
    for _ in range(2):
        store.open(cache, FILES[1])
    store.open(Cache(cache.folder, 1000), FILES[1])
    assert store.fetched == [1]


def test_least_recently_opened_files_go_and_never_one_that_is_open(tmp_path: Path, store: Store) -> None:
    cache = Cache(tmp_path, 300)
    in_use = store.open(cache, FILES[0])
    for i in (1, 2, 1, 3):
        store.open(cache, FILES[i])
    assert held(cache) == [0, 1, 3], "2 was opened before 1 was opened again"
    files = [in_use, store.open(cache, FILES[1]), store.open(cache, FILES[3])]
    store.open(cache, FILES[4])
    assert held(cache) == [0, 1, 3, 4], "more than fits, as all others are in use"
    del files
    store.open(cache, FILES[5])
    assert held(cache) == [0, 4, 5], "0 is open still; of the others 4 was opened last"


def test_a_file_open_in_another_process_stays(tmp_path: Path, store: Store) -> None:
    cache = Cache(tmp_path, 200)
    store.open(cache, FILES[0])
    script = (
        "import sys; from pathlib import Path; from hkdpipe.manifests.places.cache import Cache\n"
        "file = Cache(Path(sys.argv[1]), 200).open(sys.argv[2], 100, lambda: [])\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), name(FILES[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        for i in (1, 2, 3):
            store.open(cache, FILES[i])
        assert held(cache) == [0, 3]
        other.communicate()
    for i in (1, 2):
        store.open(cache, FILES[i])
    assert held(cache) == [1, 2]


def test_what_is_not_the_file_is_never_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    for content in (FILES[1], FILES[0][:50], FILES[0] + b"x", b""):
        with pytest.raises(BadFile, match="its SHA-256 is not the manifest's"):
            cache.open(name(FILES[0]), 100, lambda content=content: [content])  # type: ignore[misc]
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]


def test_a_source_without_end_is_cut_off(tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10**6):
            yield bytes(60)
        raise AssertionError("all was fetched")

    with pytest.raises(BadFile):
        Cache(tmp_path, 1000).open(name(FILES[0]), 100, endless)


def test_a_copy_that_was_damaged_is_fetched_again(tmp_path: Path, store: Store) -> None:
    for damage in (b"other", FILES[0][:50]):
        store.open(Cache(tmp_path, 1000), FILES[0])
        (tmp_path / name(FILES[0])).write_bytes(damage)
        store.open(Cache(tmp_path, 1000), FILES[0])
    assert store.fetched == [0, 0, 0]


def test_what_a_killed_process_left_is_written_over_and_makes_room(tmp_path: Path, store: Store) -> None:
    (tmp_path / f"{name(FILES[0])}.part").write_bytes(bytes(500))
    (tmp_path / f"{name(FILES[1])}.part").write_bytes(bytes(150))
    store.open(Cache(tmp_path, 200), FILES[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["locks", name(FILES[0])])


def test_processes_and_threads_that_want_one_file_fetch_it_once(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    fetched: list[int] = []
    begin = threading.Barrier(8)

    def chunks() -> Iterator[bytes]:
        fetched.append(1)
        for offset in range(0, len(content), 1000):
            yield content[offset : offset + 1000]

    def open_it() -> None:
        begin.wait()
        # A cache of its own has no more in common with the others than a process has.
        file = Cache(tmp_path, 10**7).open(name(content), len(content), chunks)
        assert file.sha256() == name(content)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]


def test_readers_survive_a_cache_that_is_always_full(tmp_path: Path, store: Store) -> None:
    errors = []

    def open_all(step: int) -> None:
        try:
            for i in range(200):
                store.open(Cache(tmp_path, 250), FILES[i * step % 8])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_all, args=(step,)) for step in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for content in FILES:
        store.open(Cache(tmp_path, 250), content)
    assert held(Cache(tmp_path, 250)) == [6, 7]


def test_place_and_size_are_the_environment_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CACHE_HOME", "HKDPIPE_CACHE", "HKDPIPE_CACHE_GB"):
        monkeypatch.delenv(variable, raising=False)
    cache = cache_of_environment()
    assert (cache.folder, cache.limit) == (tmp_path / ".cache" / "hkdpipe", 50 * 10**9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_of_environment().folder == tmp_path / "xdg" / "hkdpipe"
    monkeypatch.setenv("HKDPIPE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("HKDPIPE_CACHE_GB", "0.5")
    cache = cache_of_environment()
    assert (cache.folder, cache.limit) == (tmp_path / "mine", 500_000_000)
    for text in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv("HKDPIPE_CACHE_GB", text)
        with pytest.raises(UsageError, match=f"HKDPIPE_CACHE_GB: got '{text}'; accepted: gigabytes, above 0"):
            cache_of_environment()
