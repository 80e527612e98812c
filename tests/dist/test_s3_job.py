"""A pair writes a whole job to a real S3 server; it is verified there and has the bytes that a local directory gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybridiff.sinks import Corpus
from tests.dist.processes import run
from tests.dist.test_claims import arguments, contents
from tests.services.swift import CREDENTIALS, Swift

pytest.importorskip("s3fs", reason="needs s3fs, of the dev extra")
WHOLE = {"shards": 6, "rows": 12, "ok": 12, "failed": 0, "missing": 0, "corrupt": 0, "unreadable": 0}


@pytest.mark.timeout(400)
def test_a_pair_makes_a_whole_corpus_on_s3(swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": swift.url}.items():
        monkeypatch.setenv(name, value)
    url = "s3://pair-job/corpus"
    corpus = Corpus(url)
    corpus.fs.mkdir("pair-job")
    given = arguments(tmp_path, tmp_path / "here", "--data.assignment=claims")
    remote = [f"--output.url={url}" if one.startswith("--output.url") else one for one in given]
    assert f"corpus:        {url}" in run(2, *remote).succeeded().output
    assert json.loads(run(1, "jobs/verify.py", url).succeeded().output.splitlines()[-1]) == WHOLE
    run(2, *given).succeeded()
    found: dict[str, Any] = corpus.fs.cat(corpus.fs.find(corpus.root))
    there = {path[len(corpus.root) + 1 :]: data for path, data in found.items()}
    assert {n: d for n, d in there.items() if not n.startswith("stats/") and n != "run.json"} == contents(tmp_path / "here")
    assert corpus.fs.list_multipart_uploads("pair-job") == []  # type: ignore[attr-defined]
