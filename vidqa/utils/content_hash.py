"""Content-based file identity: the same under another name or date."""

import errno
import hashlib
import os
import stat

_BLOCK_BYTES = 64 * 2**10
_BLOCKS = 16


def open_without_blocking(path: str, flags: int) -> int:
    """Open a path, for the built-in `open`; a named pipe would block until it has a writer. Raises OSError."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def content_id(path: str) -> str:
    """Return a file's size and a hash of up to 1 MiB of it; raises OSError.

    Larger files are sampled at 16 places, the first and last block among them: two files of one size that agree
    there count as equal. Reading whole files would cost more than captioning them.
    """
    with open(path, "rb", opener=open_without_blocking) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "Not a regular file", path)
        size = status.st_size
        digest = hashlib.sha256(str(size).encode())
        if size <= _BLOCKS * _BLOCK_BYTES:
            digest.update(file.read())
        else:
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return f"{size}-{digest.hexdigest()[:32]}"


def with_sidecar(content: str, sidecar: str | None) -> str:
    """Return a clip's `content_id` together with its subtitle file's, if it has one; raises OSError."""
    video = content.partition("+")[0]
    return video if sidecar is None else f"{video}+{content_id(sidecar)}"


def hash_of(*parts: str) -> str:
    """Return a short hash of texts that depends on where one ends and the next begins."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:32]
