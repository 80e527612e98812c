"""Files of a shard against what their marker says of them."""

import hashlib
from typing import IO, Any

from hybridiff.corpus.corpus import Corpus

CHUNK = 1 << 20  # bytes


class Watched:
    """Reads through to a handle; all but reading is the handle's own.

    Attributes:
        refused: Whether the handle has failed to give some bytes.
    """

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.refused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read(self, size: int = -1) -> bytes:
        """Bytes of the handle, at most ``size``."""
        try:
            return self._handle.read(size)
        except BaseException:
            self.refused = True
            raise


class Counted(Watched):
    """Counts and hashes what is read, from the start on.

    Attributes:
        bytes: Read so far.
    """

    def __init__(self, handle: IO[bytes]) -> None:
        super().__init__(handle)
        self._hash, self.bytes = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        """Bytes of the handle, at most ``size``."""
        data = super().read(size)
        self._hash.update(data)
        self.bytes += len(data)
        return data

    def drain(self) -> None:
        """Reads what is left."""
        while self.read(CHUNK):
            pass

    @property
    def sha256(self) -> str:
        """Of what was read so far, in hexadecimal."""
        return self._hash.hexdigest()

    def differs(self, expected: dict[str, Any]) -> str:
        """How size or checksum differ from what a marker says of the file; nothing if they do not."""
        if self.bytes != expected["bytes"]:
            return f"{self.bytes} bytes, its marker says {expected['bytes']}"
        return "" if self.sha256 == expected["sha256"] else f"SHA-256 is {self.sha256}, its marker says {expected['sha256']}"


def differs(corpus: Corpus, name: str, expected: dict[str, Any]) -> str:
    """How a file inside the corpus differs from what a marker says of it; nothing if it does not. Reads all of it."""
    with corpus.fs.open(corpus.path(name), "rb") as handle:
        counted = Counted(handle)
        counted.drain()
    return counted.differs(expected)
