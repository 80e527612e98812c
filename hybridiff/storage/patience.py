"""File systems that wait for a storage that does not answer."""

from fsspec import AbstractFileSystem

from hybridiff.storage.protocols import is_s3


def patient(fs: AbstractFileSystem, root: str) -> tuple[AbstractFileSystem, str]:
    """The same file system and root; of S3, with patience."""
    if not is_s3(fs):
        return fs, root
    from hybridiff.storage.s3 import PatientS3  # needs s3fs, which only those have who ask for it

    return PatientS3(**fs.storage_options), root


def expect_answers(fs: AbstractFileSystem) -> None:
    """Has a file system wait for its storage as for one that has answered: it did, to the process that started this one."""
    if is_s3(fs):
        from hybridiff.storage.s3 import PatientS3

        if isinstance(fs, PatientS3):
            fs.answered = True


def patience_s(fs: AbstractFileSystem) -> float:
    """Seconds for which a file system begins a request again and again; 0 if it does not."""
    return float(getattr(fs, "patience_s", 0.0)) if is_s3(fs) else 0.0
