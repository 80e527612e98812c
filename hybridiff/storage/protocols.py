"""What a file system is, by its protocols: plug-ins give one or several."""

from fsspec import AbstractFileSystem


def protocols(fs: AbstractFileSystem) -> frozenset[str]:
    """All names of a file system's protocol, such as ``file`` and ``local``."""
    return frozenset([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether it is this machine's own."""
    return bool(protocols(fs) & {"file", "local"})


def is_memory(fs: AbstractFileSystem) -> bool:
    """Whether it ends with this process."""
    return "memory" in protocols(fs)


def is_s3(fs: AbstractFileSystem) -> bool:
    """Whether it is S3."""
    return "s3" in protocols(fs)
