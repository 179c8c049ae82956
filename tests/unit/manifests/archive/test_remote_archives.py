"""Archives in an object store, against moto's server of S3."""

import dataclasses
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive.block_stream import BlockStream
from hkdpipe.manifests.archive.reader import DamagedShard, open_archive
from hkdpipe.manifests.archive.reading_order import Blocks, training_indices
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.places import remote
from hkdpipe.manifests.plan.plan import Plan

Write = Callable[[Path, Plan], NDArray[Any]]
BUCKET = "bucket"
URL = f"s3://{BUCKET}/some/archive"


class Server:
    """An object store that counts what is asked of it."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.moto.start()
        host, port = self.moto.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.client: Any = boto3.client(
            "s3", "us-east-1", endpoint_url=self.endpoint, aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.client.create_bucket(Bucket=BUCKET)

    def upload(self, folder: Path, prefix: str = "some/archive") -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(path.relative_to(folder).as_posix(), path.read_bytes(), prefix)

    def put(self, name: str, content: bytes, prefix: str = "some/archive") -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content)

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"some/archive/{name}")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = Server()
        yield server
        server.moto.stop()


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Empty, and the one that the environment names; the cache is empty too."""
    found = running.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    for entry in found:
        running.client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    for variable, value in {
        "AWS_ENDPOINT_URL": running.endpoint,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "HKDPIPE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 0})
    return running


@pytest.fixture
def asked(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The names that were asked for since the last time."""

    def names() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
        caplog.clear()
        return re.findall(r'"GET /bucket/some/archive/(\S+)', "\n".join(lines))

    caplog.set_level(logging.INFO, "werkzeug")
    return names


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_same_states_as_from_the_folder_and_each_file_fetched_once(
    tmp_path: Path, plan: Plan, codec: str, write: Write, server: Server, asked: Callable[[], list[str]]
) -> None:
    plan = dataclasses.replace(plan, codec=codec)
    write(tmp_path / "local", plan)
    server.upload(tmp_path / "local")
    asked()
    with open_archive(tmp_path / "local") as local, open_archive(URL + "/") as opened:
        assert opened.plan == plan
        assert asked() == ["manifest.json"]
        opened.read([0], [2])
        assert asked() == [name for name, _, _ in opened.shards[0].files]
        everything = local.read(range(10), range(5))
        assert opened.read(range(10), range(5)).tobytes() == everything.tobytes()
        assert asked() == [name for shard in opened.shards[1:] for name, _, _ in shard.files]
    with open_archive(URL) as again:
        assert again.read(range(10), range(5)).tobytes() == everything.tobytes()
    assert asked() == ["manifest.json"]


def test_file_urls_and_a_cache_smaller_than_the_archive(
    tmp_path: Path, plan: Plan, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "local", plan)
    monkeypatch.setenv("HKDPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HKDPIPE_CACHE_GB", "1e-9")
    monkeypatch.setattr(remote.RemoteFolder, "open_files", 1)
    with open_archive(f"file://{tmp_path}/local") as opened:
        for index in [9, 0, 5, 1, 8, 2, 7]:
            assert opened.read([index], range(5)).tobytes() == data[index : index + 1].tobytes()
    kept = [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert len(kept) <= 2 * len(opened.shards[0].files)


def test_objects_damaged_cut_off_or_missing(tmp_path: Path, plan: Plan, write: Write, server: Server) -> None:
    data = write(tmp_path / "local", plan)
    server.upload(tmp_path / "local")
    opened = open_archive(URL)
    shard = opened.shards[1]
    content = (tmp_path / "local" / shard.file).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = rf"some/archive: shard 1 \({shard.file}\) is damaged: its SHA-256 is not the manifest's"
    for bad in (bytes(flipped), content[:-1], content[: len(content) // 2], content + b"x", b""):
        server.put(shard.file, bad)
        for use in (lambda: opened.read([5], [0]), lambda: opened.shard_bytes(1)):
            with pytest.raises(DamagedShard, match=damaged) as raised:
                use()
            assert raised.value.shard == 1
    server.remove(shard.file)
    for use in (lambda: opened.read([5], [0]), lambda: opened.shard_bytes(1)):
        with pytest.raises(DamagedShard, match=rf"shard 1 \({shard.file}\) is missing"):
            use()
    server.put(shard.file, content)
    assert opened.read(range(10), range(5)).tobytes() == data.tobytes()
    assert opened.shard_bytes(1) == content


def test_damaged_and_missing_manifests(tmp_path: Path, plan: Plan, write: Write, server: Server) -> None:
    write(tmp_path / "local", plan)
    for content, message in {
        b"{": f"{URL}/manifest.json: not JSON",
        b"\xff": f"{URL}/manifest.json: not UTF-8 at byte 0",
        b"[]": f"{URL}/manifest.json: not the manifest of an archive",
        (tmp_path / "local" / "manifest.json").read_bytes().replace(b'"seed": 7', b'"seed": 8'): (
            f"{URL}/manifest.json: changed since it was written"
        ),
    }.items():
        server.put("manifest.json", content)
        with pytest.raises(InputError, match=message):
            open_archive(URL)
    server.remove("manifest.json")
    with pytest.raises(InputError, match=rf"^{URL}: no manifest\.json there"):
        open_archive(URL)
    with pytest.raises(InputError, match=r"^s3://nobody/x: no manifest\.json there"):
        open_archive("s3://nobody/x")


def test_what_cannot_be_asked_is_one_line_that_is_no_damage(
    tmp_path: Path, plan: Plan, write: Write, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "local", plan)
    server.upload(tmp_path / "local")
    opened = open_archive(URL)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        nobody = f"http://127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    with pytest.raises(
        InputError, match=f"^{URL}/manifest.json: cannot be read with the credentials"
    ) as told:
        open_archive(URL)
    assert "\n" not in str(told.value)
    assert not isinstance(told.value, DamagedShard)
    opened.read([0], [0])  # of the server that it was opened with
    for url in ("nothing://x/y", "s3://", f"file://{tmp_path}/none"):
        with pytest.raises(InputError, match=f"^{url.rstrip('/')}"):
            open_archive(url)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"needs obstore: pip install 'hkdpipe\[remote\]'"):
        open_archive(URL)


def test_server_that_dies_in_the_middle_of_a_shard(
    tmp_path: Path, plan: Plan, write: Write, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sends half of what it announced and hangs up, whenever it is asked for a shard."""
    data = write(tmp_path / "local", plan)
    server.upload(tmp_path / "local")
    listening = socket.create_server(("127.0.0.1", 0))
    files = {path.name: path.read_bytes() for path in (tmp_path / "local").rglob("*") if path.is_file()}

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                name = connection.recv(65536).split()[1].decode().rpartition("/")[2]
                content = files.get(name, b"")
                head = (
                    f'HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nETag: "x"\r\nConnection: close\r\n'
                    "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
                )
                half = content if name == "manifest.json" else content[: len(content) // 2]
                connection.sendall(head.encode() + half)

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
    opened = open_archive(URL)
    try:
        with pytest.raises(InputError, match=f"^{URL}/.*: cannot be read") as told:
            opened.read([5], [0])
        assert not isinstance(told.value, DamagedShard)
        with pytest.raises(InputError, match=f"^{URL}/.*: cannot be read"):
            opened.shard_bytes(1)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["locks"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    assert open_archive(URL).read(range(10), range(5)).tobytes() == data.tobytes()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_blocks_are_streamed_past_the_cache(
    tmp_path: Path, plan: Plan, codec: str, write: Write, server: Server, asked: Callable[[], list[str]]
) -> None:
    write(tmp_path / "local", dataclasses.replace(plan, form="webdataset", codec=codec))
    server.upload(tmp_path / "local")
    blocks, states = Blocks(shard_size=4, shards=2), [[0, 2, 4]] * 24
    asked()
    with (
        open_archive(tmp_path / "local") as local,
        open_archive(URL) as opened,
        closing(BlockStream(opened, 5, 2, blocks)) as streamed,
    ):
        expected = local.read(training_indices(5, 3, 27, 2, 10, blocks), states)
        assert streamed.read(3, 27, states).tobytes() == expected.tobytes()
    assert {name.partition("-")[0] for name in asked()} == {"manifest.json", "shard"}
    assert not (tmp_path / "cache").exists()


def test_a_path_is_no_url(tmp_path: Path) -> None:
    assert remote.is_url(URL)
    assert not remote.is_url(tmp_path)
    assert not remote.is_url("C:/folder")
