"""Whole jobs on a real S3 server, also one that dies: verified there, with the bytes that a local directory gets."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hybridiff.corpus import Corpus
from tests.dist.processes import finish, kill, run, start
from tests.dist.test_failed_rows import SOUND
from tests.dist.test_failed_rows import arguments as faulty_arguments
from tests.dist.test_leases import arguments, contents
from tests.optional import needs
from tests.services.swift import CREDENTIALS, Swift

needs("s3fs", "s3")
WHOLE = {"shards": 6, "rows": 12, "ok": 12, "failed": 0, "missing": 0, "corrupt": 0, "unreadable": 0}
SHARDS_OF_4 = {"data.batch_size": 2, "output.shard_size": 4}


def objects(corpus: Corpus) -> dict[str, bytes]:
    """Objects of the corpus that must not differ from run to run."""
    corpus.fs.invalidate_cache()  # others have written since it was listed
    paths = {path[len(corpus.root) + 1 :]: path for path in corpus.fs.find(corpus.root)}
    # a lease that was removed while the server died may still be listed
    same = {name: path for name, path in paths.items() if not name.startswith(("stats/", "leases/")) and name != "run.json"}
    found: dict[str, Any] = corpus.fs.cat(list(same.values()))
    return {name: found[path] for name, path in same.items()}


@pytest.mark.timeout(400)
def test_a_pair_makes_a_whole_corpus_on_s3(swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": swift.url}.items():
        monkeypatch.setenv(name, value)
    url = "s3://pair-job/corpus"
    corpus = Corpus(url)
    corpus.fs.mkdir("pair-job")
    given = arguments(tmp_path, tmp_path / "here")
    remote = [f"--output.url={url}" if one.startswith("--output.url") else one for one in given]
    assert f"corpus:        {url}" in run(2, *remote).succeeded().output
    assert json.loads(run(1, "jobs/verify.py", url).succeeded().output.splitlines()[-1]) == WHOLE
    run(2, *given).succeeded()
    assert objects(corpus) == contents(tmp_path / "here")
    assert corpus.fs.list_multipart_uploads("pair-job") == []  # type: ignore[attr-defined]


@pytest.mark.timeout(400)
def test_a_server_that_dies_costs_a_shard_which_the_next_run_makes(
    swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, hold, lost = (tmp_path / f"go{ending}" for ending in ("", ".hold", ".lost"))
    environment = {"AWS_ENDPOINT_URL": swift.url, "HYBRIDIFF_TEST_GO": str(go), "HYBRIDIFF_TEST_RETRY_BUDGET_S": "5"}
    for name, value in (CREDENTIALS | environment).items():
        monkeypatch.setenv(name, value)
    corpus = Corpus("s3://dying/corpus")
    corpus.fs.mkdir("dying")
    prompts = [SOUND] * 16
    prompts[6] += " poison wait"  # in the second of four shards
    prompts[8] += " poison hold"  # in the third
    given = ["tests/dist/faulty_generate.py", *faulty_arguments(tmp_path, 1, prompts, **SHARDS_OF_4)]
    remote = [f"--output.url={corpus.url}" if one.startswith("--output.url") else one for one in given]
    job = start(1, *remote)
    try:
        deadline = time.monotonic() + 100
        while corpus.committed() != {0}:
            assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
            time.sleep(0.1)
        swift.kill()
        go.touch()
        while not lost.exists():
            assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
            time.sleep(0.1)
        swift.start()
        hold.touch()
        output = finish(job)
    finally:
        kill(job)
        swift.start()
    assert job.returncode == 1 and "shard 1 was not written: " in output and "shards left:   1" in output, output
    assert corpus.committed() == {0, 2, 3} and corpus.names("images") == ["00000.tar", "00002.tar", "00003.tar"]
    run(1, *remote).succeeded()
    run(1, *given).succeeded()
    assert objects(corpus) == contents(tmp_path / "corpus")
