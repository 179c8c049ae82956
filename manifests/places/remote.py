"""Files in an object store, or wherever else obstore reads from, fetched whole into this machine's cache."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.places.cache import cache_of_environment
from hkdpipe.manifests.places.shard_files import MISSING, BadFile, OpenFile

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_CHUNK_BYTES = 8 << 20
_RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": datetime.timedelta(minutes=3)}


def is_url(path: object) -> bool:
    """Whether a place is a URL rather than a path."""
    return "://" in str(path)


class RemoteFolder:
    """Files under a URL. Any thread may call its methods. They raise InputError where the store cannot be
    asked; credentials are the environment's."""

    open_files = 16  # what is open keeps its room in the cache

    def __init__(self, url: str) -> None:
        """UsageError without obstore, InputError for a URL that it does not know."""
        try:
            from obstore.store import from_url
        except ImportError:
            raise UsageError(f"{url}: reading it needs obstore: pip install 'hkdpipe[remote]'") from None
        self.url = url.rstrip("/")
        self._cache = cache_of_environment()
        with self._explained(self.url):
            # An endpoint without encryption is one that the environment names.
            self._store: Any = from_url(self.url, client_options={"allow_http": True}, retry_config=_RETRIES)

    def __str__(self) -> str:
        return self.url

    def open(self, name: str, size: int, sha256: str) -> OpenFile:
        """The copy in the cache, verified; fetched when it is first used. Raises BadFile."""
        return self._cache.open(sha256, size, lambda: self.stream(name))

    def stream(self, name: str) -> Iterator[bytes]:
        """The file's content in chunks, not verified. Raises BadFile where it is missing."""
        import obstore

        with self._explained(f"{self.url}/{name}"):
            yield from obstore.get(self._store, name).stream(min_chunk_size=_CHUNK_BYTES)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise BadFile(MISSING) from None
        except BaseError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{what}: cannot be read with the credentials and the endpoint in the environment: {reason}"
            ) from None
