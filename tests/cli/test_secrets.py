"""A secret that is given never comes out: not in files, not in messages, not in the trace of a crash."""

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridiff import cli
from hybridiff.cli import submit
from hybridiff.cli import verify as verify_job
from hybridiff.corpus import Corpus, ShardWriter, finish, verify
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.runner.agreement import reason
from hybridiff.secrets import hide, known_secrets, one_line, redact, report_crash, secrets_in
from jobs.benchmark import __main__ as benchmark
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, record, result, write_shard
from tests.dist.processes import ENVIRONMENT, ROOT

SECRET = "hunter2-Zx9"
URLS = [
    f"s3://AKIA:{SECRET}@bucket/corpus",
    f"ftp://me:{SECRET}@127.0.0.1:1/corpus",
    f"ftp://me:a@{SECRET}@127.0.0.1:1/corpus",
    f"ftp://me:a/{SECRET}@127.0.0.1:1/corpus",
    f"nosuch://{SECRET}@host/corpus",
    f"http://127.0.0.1:1/corpus.jsonl?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://127.0.0.1:1/corpus.jsonl?sv=1&sig={SECRET}",
    f"http://127.0.0.1:1/corpus.jsonl?access_token={SECRET}",
    f"simplecache::ftp://me:{SECRET}@127.0.0.1:1/corpus.jsonl",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("option", ["output.url", "data.prompts", "model.path", "output.image_format", "nosuch.option"])
def test_no_refusal_repeats_it(
    url: str, option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "prompts.txt"
    table.write_text("a red circle\n")
    given = {"data.prompts": str(table), "output.url": str(tmp_path / "corpus"), "trainer.accelerator": "cpu"} | {option: url}
    monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *(f"--{name}={value}" for name, value in given.items())])
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(sys.argv[1:]) == 2
    captured = capfd.readouterr()
    assert captured.err.count("generate: error: ") == 1 and SECRET not in captured.err + captured.out


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("option", ["sinks.urls={}", 'sinks.urls=["{}"]', "picture={}", "subject.model={}", "nosuch.option={}"])
def test_the_benchmark_repeats_it_in_no_refusal(
    url: str, option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--{option.format(url)}", "--sinks.device=nosuch" if "sinks" in option else "--subject.device=nosuch"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
    assert benchmark.main() == 2
    captured = capfd.readouterr()
    assert captured.err.count("benchmark: error: ") == 1 and SECRET not in captured.err + captured.out


@pytest.mark.parametrize("given", [[f"--output.url={url}"] for url in URLS] + [["--output.url", url] for url in URLS])
def test_no_batch_script_is_made_with_it(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert submit.main(["--write", str(tmp_path / "job.sbatch"), *given]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("submit: error: output.url holds a secret, ") and captured.err.count("\n") == 1
    assert SECRET not in captured.err + captured.out and list(tmp_path.iterdir()) == []


def test_it_is_in_no_file_of_the_corpus_and_no_report(url: str) -> None:
    corpus = Corpus(url)
    configuration = record().configuration | {
        "output": {"url": URLS[0], "image_format": "png"},
        "data": {"prompts": URLS},
        "model": {"path": redact(URLS[1])},
        "trainer": {
            "logger": {"init_args": {"api_key": SECRET, "credentials": {"user": "me", "pw": SECRET}, "pwd": SECRET}},
            "storage_options": {"secret": SECRET, "token": [SECRET], "account_key": SECRET},
        },
    }
    corpus.start_run(record(configuration=configuration))
    for index in range(3):
        write_shard(corpus, index)
    assert finish(corpus) and verify(corpus).whole
    assert not [name for name, data in files(corpus).items() if SECRET.encode() in data]


def test_a_check_hides_it_and_not_the_working_directory(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(url)
    monkeypatch.setenv("PWD", str(Path(url).parent))
    monkeypatch.setenv("OLDPWD", url)
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    assert verify_job.main([url, "--processes=1"]) == 0
    assert capsys.readouterr().out.startswith(f"{url} is whole: ")
    assert verify_job.main([f"{url}/{SECRET}"]) == 2
    assert f"{url}/*** holds no corpus" in capsys.readouterr().err


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "corpus")


@pytest.mark.parametrize(
    "text",
    [
        f"PUT https://me:{SECRET}@host/x?sig={SECRET} failed",
        f"aws_secret_access_key={SECRET}",
        f"{{'secret': '{SECRET}', 'key': 'x'}}",
        f'Authorization: "{SECRET}"',
        f"AccountName=x;AccountKey={SECRET};EndpointSuffix=y",
        f"S3FileSystem(password={SECRET})",
        f"OSError: password: {SECRET}",
        f"NoCredentialsError: Unable to log in with token: {SECRET}",
        f"access_token={SECRET}",
        f"token='{SECRET}'",
        f"pad_token_password={SECRET}",
        f"headers: Authorization: Bearer {SECRET}",
        f"GET http://host/?a?sig={SECRET}",
        f"SecretAccessKey: {SECRET}",
    ],
)
def test_messages_of_others_lose_it(text: str) -> None:
    assert SECRET not in hide(text) and "***" in hide(text)


def test_what_is_known_is_hidden_wherever_it_stands_and_nothing_else_is() -> None:
    assert hide(f"bad {SECRET}!", {SECRET}) == "bad ***!"
    assert secrets_in({"url": "s3://me:pa%2Fss42@b", "AWS_SECRET_ACCESS_KEY": SECRET, "n": 5}) == {"pa%2Fss42", "pa/ss42", SECRET}
    for harmless in (
        "data.key_column is 'x'; allowed: a column",
        "http://host:8080/a@b.csv",
        "tokenizer: CLIP",
        "s3://bucket/a?versionId=7",
    ):
        assert hide(harmless) == harmless and redact(harmless) == harmless and secrets_in(harmless) == set()


@pytest.mark.parametrize(
    "harmless",
    [
        "NoCredentialsError: Unable to locate credentials",
        "botocore.exceptions.TokenRetrievalError: Error when retrieving token from sso: Token has expired and refresh failed",
        "SignatureDoesNotMatch: The request signature we calculated does not match the signature you provided",
        "InvalidAccessKeyId: The AWS Access Key Id you provided does not exist in our records",
        "ExpiredToken: The provided token has expired",
        "max_new_tokens=64, num_tokens: 12, 'tokens_per_s': 3.5",
        "pad_token='<pad>', eos_token=</s>, pad_token_id=49407, additional_special_tokens=['<a>']",
    ],
)
def test_what_went_wrong_and_counts_and_marks_of_tokenizers_stay(harmless: str) -> None:
    assert hide(harmless) == harmless


def test_an_option_that_is_no_secret_is_recorded() -> None:
    options = {"pad_token": "<pad>", "max_new_tokens": 64, "special_tokens": ["<a>"], "token": [SECRET], "tokens": SECRET}
    assert redact(options) == options | {"token": "***", "tokens": "***"}
    assert secrets_in(options) == {SECRET, str([SECRET])}


LONG = ("m", "紅", "m ", "token", "token=", "token ", "a=", "?", "&a", "://:x", "://a@", "@", "'", '"', "a\t", " ", "a:")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("end", ["", "@host"])
def test_a_text_of_a_megabyte_is_looked_through_once(piece: str, end: str) -> None:
    text = piece * ((1 << 20) // len(piece)) + end
    started = time.process_time()
    hide(text, {SECRET})
    assert time.process_time() - started < 1.0


def test_what_is_shortened_is_cut_between_words() -> None:
    said = one_line(OSError(f"{'x' * 284} signed with {SECRET}"))
    assert said == f"OSError: {'x' * 284} ..." and reason(ValueError("bad")) == "ValueError: bad"
    assert reason(ValueError("")) == "ValueError" and len(reason(ValueError("long " * 1000))) <= 256
    assert SECRET not in one_line(OSError(f"ftp://me:{SECRET}{'x' * 1000}@host"))
    assert reason(RuntimeError("m" * 100_000)) == "RuntimeError: ..."


def test_the_trace_of_a_crash_loses_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"output:\n  url: ftp://me:{SECRET}@host/x\n")
    monkeypatch.setattr("sys.argv", ["hybridiff", "generate", "--config", str(config)])
    assert known_secrets(["--config", str(config)], {}) == {SECRET}
    try:
        raise OSError(f"login with {SECRET} was refused")
    except OSError as error:
        report_crash(OSError, error, error.__traceback__)
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "OSError: login with *** was refused" in printed and SECRET not in printed


class Prompts(http.server.BaseHTTPRequestHandler):
    """Serves one table to whoever knows the secret."""

    def do_HEAD(self) -> None:
        self.send_response(200 if SECRET in self.path else 403)
        self.send_header("Content-Length", "13")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"a red circle\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Prompts) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


CRASHING = """
import runpy
import sys
import jobs.benchmark.picture

def fail(url):
    raise RuntimeError(f"login with {url.partition('me:')[2].partition('@')[0]} was refused")

jobs.benchmark.picture.check_picture = fail
runpy.run_module("jobs.benchmark", run_name="__main__")
"""


@pytest.mark.timeout(100)
def test_the_trace_of_a_crash_of_the_benchmark_loses_it(tmp_path: Path) -> None:
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    config = "configs/bench/fidelity-xl.yaml"
    command = [sys.executable, str(script), "--config", config, f"--picture=ftp://me:{SECRET}@host/x.png"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and "RuntimeError: login with *** was refused" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_whole_run_leaves_it_nowhere(server: str, tmp_path: Path) -> None:
    given = {
        "data.prompts": f"http://{server}/prompts.txt?token={SECRET}",
        "output.url": tmp_path / "corpus",
        "sampling.steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
        "trainer.logger.save_dir": tmp_path / "logs",
        "trainer.logger.prefix": "x",
    }
    command = [sys.executable, "jobs/generate.py", *(f"--{name}={value}" for name, value in given.items())]
    environment = os.environ | ENVIRONMENT | {"AWS_SECRET_ACCESS_KEY": SECRET, "FSSPEC_S3_SECRET": SECRET}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "corpus/run.json").is_file() and list((tmp_path / "logs").rglob("*.csv"))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in done.stdout + done.stderr


def test_verify_repeats_it_nowhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    (tmp_path / "images/00002.tar").write_bytes(b"garbage")
    open_file, read = type(corpus.fs).open, type(corpus.fs).cat_file

    def refuse(self: Any, path: str, *given: Any, **options: Any) -> Any:
        if path.endswith("00000.parquet"):
            raise OSError(f"GET https://me:{SECRET}@host/x?sig={SECRET} failed")
        if path.endswith("00001.json"):
            raise RuntimeError(f"signed with {SECRET}")
        return (read if not given and not options else open_file)(self, path, *given, **options)

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(type(corpus.fs), "open", refuse)
    monkeypatch.setattr(type(corpus.fs), "cat_file", refuse)
    assert verify_job.main([str(tmp_path), "--processes", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("***") >= 2 and "signed with ***" in captured.out and SECRET not in captured.out + captured.err
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["corrupt"], summary["unreadable"]) == (1, 2)
    for url in URLS:
        assert verify_job.main([url]) == 2
        assert SECRET not in (said := capsys.readouterr().err) and said.count("\n") == 1, url


def test_no_row_and_no_lost_shard_says_it(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))

    def open_shard(index: int) -> ShardWriter:
        if index == 1:
            raise OSError(f"aws_secret_access_key={SECRET}")
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG)

    writer = BackgroundWriter(open_shard, PNG, passing=lambda _: True)
    error = f"OSError: PUT https://host/x?sig={SECRET}, password: {SECRET}"
    writer.put(0, [dataclasses.replace(result(0, failed=True), error=error)], True, {})
    writer.put(1, [result(1)], True, {})
    writer.close()
    assert writer.lost == {1: "OSError: aws_secret_access_key=***"} and corpus.committed() == {0}
    assert not [name for name, data in files(corpus).items() if SECRET.encode() in data]
