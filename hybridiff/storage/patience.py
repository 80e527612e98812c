"""File systems that wait for a storage that does not answer."""

from fsspec import AbstractFileSystem


def patient(fs: AbstractFileSystem, root: str) -> tuple[AbstractFileSystem, str]:
    """The same file system and root; of S3, with patience."""
    if "s3" not in fs.protocol:
        return fs, root
    from hybridiff.storage.s3 import PatientS3  # needs s3fs, which only those have who ask for it

    return PatientS3(**fs.storage_options), root


def be_patient(fs: AbstractFileSystem) -> None:
    """From now on, storage that does not answer is waited for, if it is S3."""
    if "s3" in fs.protocol:
        from hybridiff.storage.s3 import PATIENCE_S, PatientS3

        if isinstance(fs, PatientS3):
            fs.patience_s = PATIENCE_S
