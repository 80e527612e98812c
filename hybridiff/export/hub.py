"""Publishing a corpus as a dataset on the Hugging Face Hub, by its upload calls in huggingface_hub.

Files are uploaded some shards at a time, which by itself shows nowhere, and then many files become one commit. So the history is
short, what a killed command has uploaded is not sent again, and each commit holds whole shards with their markers. Where the Hub
says how long to wait (429), the command waits; where it breaks down (5xx, the connection), it tries again with growing pauses.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session, hf_raise_for_status
from huggingface_hub.utils.sha import git_hash

from hybridiff import __version__
from hybridiff.corpus.reader import damaged
from hybridiff.errors import StorageError, UsageError, amount
from hybridiff.export.copy_corpus import Sent, send
from hybridiff.export.licence import Licence
from hybridiff.export.publication import DataFile, Publishable, ShardFiles, SmallFile
from hybridiff.secrets import one_line
from hybridiff.storage.filesystem import is_local

COMMIT_SHARDS = 200
UPLOAD_SHARDS = 20
COPIED_BYTES = 16 << 30  # of a commit's files on the local disk, if the corpus is elsewhere
LONGEST_WAIT_S = 3600.0  # for one call, where the Hub says how long to wait
LONGEST_OUTAGE_S = 300.0  # where it does not
FIRST_CONTACT_S = 5.0  # where it has not answered yet: there may be no network
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_TRANSIENT = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
_CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})  # of versions of huggingface_hub
_URL = re.compile(r"hf://datasets/([\w-][\w.-]*/[\w-][\w.-]*)/?")
_REMAINING = re.compile(r";\s*t\s*=\s*(\d+)")  # of the header RateLimit
_Found = TypeVar("_Found")


def repository(url: str) -> str:
    """OWNER/NAME of a url.

    Raises:
        UsageError: it is no url of a dataset.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise UsageError(f"URL is {url}; allowed: hf://datasets/OWNER/NAME, or a directory at any other fsspec url")
    return found[1]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset on the Hub.

    Args:
        size: bytes.
        sha256: SHA-256 in hexadecimal, if it is a large one.
        blob: git's id of its content, or of the pointer to a large one.
    """

    size: int
    sha256: str | None
    blob: str

    def is_small(self, file: SmallFile) -> bool:
        """Whether it has the content of a small file."""
        if self.sha256 is not None:
            return self.sha256 == hashlib.sha256(file.content).hexdigest()
        return self.blob == git_hash(file.content)

    def is_data(self, file: DataFile) -> bool:
        """Whether it has the content of a shard's file."""
        if self.size != file.size or self.sha256 is not None:
            return self.size == file.size and self.sha256 == file.sha256
        return self.blob == git_hash(file.corpus.read(file.name))


class HubDataset:
    """A dataset on the Hub.

    Args:
        name: OWNER/NAME.
        report: called with a line for each commit, and where the Hub makes the command wait.
        sleep: waits for seconds.
    """

    def __init__(
        self, name: str, report: Callable[[str], None] = lambda _: None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.name, self._report, self._sleep = name, report, sleep
        self._api = HfApi(library_name="hybridiff", library_version=__version__)
        self.sent = Sent()
        self._answered = False

    def publish(self, found: Publishable, licence: Licence, private: bool = False) -> Sent:
        """Uploads what is not there yet, and commits it.

        Args:
            found: the corpus.
            licence: the licence of its model.
            private: whether a dataset that is made for it is private.

        Raises:
            UsageError: there is no token, or it may not do this; or the dataset holds another corpus.
            StorageError: the Hub failed, or a file is not what its marker says.
        """
        disable_progress_bars()
        if get_token() is None:
            raise UsageError("no token for the Hub was found; allowed: the variable HF_TOKEN, or what hf auth login stores")
        self._with_retries(lambda: self._api.whoami())
        self._with_retries(lambda: self._api.create_repo(self.name, repo_type="dataset", private=private or None, exist_ok=True))
        there = self._with_retries(self._files)
        self._check_other(found, there)
        descriptions = found.descriptions(licence)
        self._with_retries(lambda: self._check_card(descriptions[-1].content.decode()))  # before hours of uploads
        operations = self._small(found.records(), there)
        batches = list(_batches(self._missing(found, there)))
        for last, batch in ((batch is batches[-1], batch) for batch in batches):
            with tempfile.TemporaryDirectory(prefix="hybridiff-publish-") as copies:
                for start in range(0, len(batch), UPLOAD_SHARDS):
                    operations += self._upload(batch[start : start + UPLOAD_SHARDS], copies)
                operations += self._small(descriptions, there) if last else []
                self._commit(operations)
            operations = []
        if not batches and (operations := operations + self._small(descriptions, there)):
            self._commit(operations)
        return self.sent

    def _files(self) -> dict[str, RemoteFile]:
        try:
            found = list(self._api.list_repo_tree(self.name, repo_type="dataset", recursive=True))
        except (RevisionNotFoundError, EntryNotFoundError):  # nothing was committed yet
            return {}
        files = [one for one in found if isinstance(one, RepoFile)]
        return {one.path: RemoteFile(one.size, one.lfs.sha256 if one.lfs else None, one.blob_id) for one in files}

    def _check_other(self, found: Publishable, there: dict[str, RemoteFile]) -> None:
        records = [(file, there[file.target]) for file in found.records() if file.target in there]
        others = [file.target for file, remote in records if not remote.is_small(file)]
        foreign = sorted(there.keys() - {".gitattributes", "README.md"}) if not records else []
        if others or foreign:
            what = f"whose {others[0]} is of another corpus" if others else f"which holds {', '.join(foreign[:5])}"
            raise UsageError(
                f"URL is hf://datasets/{self.name}, {what}; allowed: a new dataset, or one with a part of this corpus"
            )

    def _check_card(self, card: str) -> None:
        """Raises UsageError if the Hub does not allow the header of the card."""
        url, document = f"{self._api.endpoint}/api/validate-yaml", {"content": card, "repoType": "dataset"}
        response = get_session().post(url, json=document, headers=build_hf_headers())
        if response.status_code == 400:
            errors = "; ".join(str(one.get("message")) for one in response.json().get("errors", []))
            raise UsageError(f"the Hub refuses the card: {errors}; --license takes the name of a licence that the Hub knows")
        if response.status_code in _TRANSIENT:
            hf_raise_for_status(response)

    def _missing(self, found: Publishable, there: dict[str, RemoteFile]) -> Iterator[ShardFiles]:
        for shard in found.shards:
            marker = there.get(shard.marker.target)
            data = [there.get(file.target) for file in shard.data]
            same = [remote is not None and remote.is_data(file) for file, remote in zip(shard.data, data, strict=True)]
            if all(same) and marker is not None and marker.is_small(shard.marker):
                self.sent.skipped += 3
            else:
                yield shard

    def _small(self, files: list[SmallFile], there: dict[str, RemoteFile]) -> list[CommitOperationAdd]:
        """What is to be committed of some small files."""
        found = []
        for file in files:
            remote = there.get(file.target)
            is_there = remote is not None and remote.is_small(file)
            self.sent.add(None if is_there else len(file.content))
            if not is_there:
                found.append(CommitOperationAdd(file.target, file.content))
        return found

    def _upload(self, shards: list[ShardFiles], copies: str) -> list[CommitOperationAdd]:
        """Uploads the files of some shards, and returns what is to be committed.

        Args:
            shards: the shards.
            copies: local directory for copies of files that are elsewhere.
        """
        data = [file for shard in shards for file in shard.data]
        operations = [CommitOperationAdd(file.target, _local_path(file, copies)) for file in data]
        upload = self._api.preupload_lfs_files
        self._with_retries(lambda: upload(self.name, operations, repo_type="dataset", free_memory=False))
        for operation, file in zip(operations, data, strict=True):
            info = operation.upload_info
            if info.size != file.size or info.sha256.hex() != file.sha256:
                reason = f"{info.size} bytes of SHA-256 {info.sha256.hex()}, its marker says {file.size} of {file.sha256}"
                raise damaged(file.corpus, file.name, reason)
            self.sent.add(file.size)
        for shard in shards:
            self.sent.add(len(shard.marker.content))
        return [*operations, *(CommitOperationAdd(shard.marker.target, shard.marker.content) for shard in shards)]

    def _commit(self, operations: list[CommitOperationAdd]) -> None:
        message = f"Publish {amount(len(operations), 'file')} with Hybridiff {__version__}"
        self._with_retries(lambda: self._api.create_commit(self.name, operations, commit_message=message, repo_type="dataset"))
        self.sent.commits += 1
        self._report(f"hf://datasets/{self.name}: {amount(len(operations), 'file')} committed")

    def _with_retries(self, call: Callable[[], _Found]) -> _Found:
        """What a call returns, once the Hub has accepted it.

        Raises:
            UsageError: the token does not allow it, or the card's header is not allowed.
            StorageError: the Hub refused it, or did not accept it for an hour.
        """
        waited_s, pause_s = 0.0, _FIRST_PAUSE_S
        while True:
            try:
                found = call()
                self._answered = True
                return found
            except Exception as error:  # clients of HTTP raise types of their own
                wait_s = _requested_wait(error, pause_s)
                if wait_s is None:
                    raise _explained(error, self.name) from error
                self._answered |= _response(error) is not None
                most_s = LONGEST_WAIT_S if _is_limit(error) else LONGEST_OUTAGE_S if self._answered else FIRST_CONTACT_S
                if waited_s + wait_s > most_s:
                    reason = f"did not accept it for {waited_s:.0f} s"
                    raise StorageError(f"hf://datasets/{self.name}: the Hub {reason} ({one_line(_cause(error))})") from error
                self._report(f"hf://datasets/{self.name}: the Hub answers {one_line(_cause(error))}; waiting {wait_s:.0f} s")
            self._sleep(wait_s)
            waited_s += wait_s
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _batches(shards: Iterator[ShardFiles]) -> Iterator[list[ShardFiles]]:
    """The shards of each commit: few commits, and not more bytes than a disk has room for."""
    batch: list[ShardFiles] = []
    size = 0
    for shard in shards:
        own = 0 if is_local(shard.data[0].corpus.fs) else sum(file.size for file in shard.data)
        if batch and (len(batch) == COMMIT_SHARDS or size + own > COPIED_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(shard)
        size += own
    if batch:
        yield batch


def _local_path(file: DataFile, copies: str) -> str:
    """The path of a file, or of a copy of it."""
    path = file.corpus.path(file.name)
    if is_local(file.corpus.fs):
        if not os.path.isfile(path):
            raise damaged(file.corpus, file.name, "missing")
        return str(path)
    copy = os.path.join(copies, file.target.replace("/", "-"))
    with open(copy, "wb") as handle:
        send(file, handle.write)
    return copy


def _requested_wait(error: BaseException, pause_s: float) -> float | None:
    """Seconds to wait before the next try; None if another one would not help."""
    cause, response = _cause(error), _response(error)
    if response is None:
        connection = type(cause).__module__.partition(".")[0] in _CLIENTS or isinstance(cause, (ConnectionError, TimeoutError))
        return pause_s if connection and not isinstance(cause, OfflineModeIsEnabled) else None
    if response.status_code not in _TRANSIENT:
        return None
    stated = _seconds(response.headers.get("Retry-After")) or _remaining(response.headers.get("RateLimit"))
    return max(stated, _FIRST_PAUSE_S) if stated is not None else pause_s


def _cause(error: BaseException) -> BaseException:
    """The error of the Hub or the connection behind one of an upload."""
    found: BaseException | None = error
    while found is not None:
        if getattr(found, "response", None) is not None or type(found).__module__.partition(".")[0] in _CLIENTS:
            return found
        found = found.__cause__
    return error


def _response(error: BaseException) -> Any:
    """The Hub's answer behind an error; None if there was none."""
    return getattr(_cause(error), "response", None)


def _is_limit(error: BaseException) -> bool:
    return getattr(_response(error), "status_code", None) == 429


def _seconds(text: str | None) -> float | None:
    """Seconds of a header Retry-After, which is a number or a date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _remaining(text: str | None) -> float | None:
    found = _REMAINING.search(text or "")
    return float(found[1]) if found else None


def _explained(error: Exception, name: str) -> Exception:
    """The error as it is reported."""
    status = getattr(_response(error), "status_code", None)
    if status == 401:
        return UsageError(
            f"the Hub refuses the token (401); allowed: one that may write to {name}, in HF_TOKEN or by hf auth login"
        )
    if status == 403:
        return UsageError(f"the token may not write to hf://datasets/{name} (403); allowed: a dataset of the token's owner")
    if isinstance(error, (UsageError, StorageError)):
        return error
    return StorageError(f"hf://datasets/{name}: {one_line(_cause(error))}")
