"""A secret that is given never comes out: not in files, not in messages, not in the traceback of a crash."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridiff import cli
from hybridiff.corpus import Corpus, ShardWriter
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.errors import UsageError
from hybridiff.parallel.guard import error_line
from hybridiff.secrets import install_redaction, one_line, redact, refuse_credentials, report_crash
from jobs.benchmark import __main__ as benchmark
from jobs.benchmark.config import CorpusConfig
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, result
from tests.dist.processes import ENVIRONMENT, ROOT

SECRET = "hunter2-Zx9"
URLS = [
    f"s3://AKIA:{SECRET}@bucket/corpus",
    f"ftp://me:a@b/{SECRET}@127.0.0.1:1/corpus",
    f"nosuch://{SECRET}@host/corpus",
    f"http://127.0.0.1:1/corpus.jsonl?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://127.0.0.1:1/corpus.jsonl?sv=1&sig={SECRET}",
    f"http://127.0.0.1:1/corpus.jsonl?pass={SECRET}&code={SECRET}",
    f"http://127.0.0.1:1/corpus.jsonl?p%61ss={SECRET}",
    f"http://127.0.0.1:1/corpus.jsonl#token={SECRET}",
    f"simplecache::ftp://me:{SECRET}@127.0.0.1:1/corpus.jsonl",
]


@pytest.mark.parametrize(
    "text",
    [
        f"PUT https://me:a@b/{SECRET}@host/x?sig={SECRET} failed, then ?code={SECRET}",
        f"aws_secret_access_key={SECRET} SecretAccessKey: {SECRET}",
        f"{{'secret': '{SECRET} with, commas; and more', 'pw': '{SECRET}', 'key': 'x'}}",
        f'Authorization: "{SECRET}", headers: Authorization: Bearer {SECRET}',
        f"AccountName=x;AccountKey={SECRET};EndpointSuffix=y",
        f"S3FileSystem(password={SECRET}), pad_token_password={SECRET}",
        f"NoCredentialsError: Unable to log in with token: {SECRET}",
        f"host=db user=u password={SECRET}",
        f"postgresql+psycopg://u:{SECRET}@db/x, dsn={SECRET}",
        f"Cookie: theme=x; session={SECRET}; z={SECRET}",
        f"jwt={SECRET} db_pass={SECRET} GITHUB_PAT={SECRET} pat='{SECRET}' session={SECRET}",
        f"curl --password {SECRET} --data.api_key {SECRET} x, password => {SECRET}, token->{SECRET}",
        f"<password>{SECRET}</password> sent as Bearer {SECRET}; PHPSESSID={SECRET}, ssh_key={SECRET}, passcode={SECRET}",
        f"sk-{SECRET}-{'a1' * 12} xoxb-1234-{SECRET} glpat-{SECRET}{'b2' * 6} https://hooks.slack.com/services/T0/{SECRET}",
        f"otp={SECRET} --totp {SECRET}, {{'login': '{SECRET}'}}, https://h/x?mfa={SECRET}",
        f"connect to me:{SECRET}@db.example.org:5432/x, (me:{SECRET}@host)",
        f"curl -u me:{SECRET} https://h, --proxy-user 'me:{SECRET}', ['-U', 'me:{SECRET}'], --user=me:secret, -ume:{SECRET}",
        f"//me:{SECRET}@host/share, mount=//me:a/{SECRET}@host, ssh me:{SECRET}@db.example.org, me:secret@10.0.0.1",
        f"admin:secret@db, root:toor@mysql:3306, me:{SECRET}@db",
        f"auth=('me', '{SECRET}'), 'auth': ['me', '{SECRET}'], password=[{SECRET} and]",
        f"connect: user=me pass: {SECRET}, auth: {SECRET}, pw: '{SECRET}', ask for the access_code: {SECRET}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyLVp4OSJ9.c2ln hf_" + "a1" * 17 + " AKIA" + "Z9" * 8,
    ],
)
def test_texts_of_others_lose_it(text: str) -> None:
    shown = redact(text)
    assert SECRET not in shown and "***" in shown
    assert not [piece for piece in ("eyJ", "hf_", "AKIA") if piece in shown]


WORDS = "WaterMelon"  # a secret without digits


@pytest.mark.parametrize(
    "text",
    [
        *(f"{name}={WORDS}" for name in ("code", "session", "login", "pass", "access_code")),
        *(f"{name}: {WORDS}" for name in ("code", "session", "pass", "pw", "auth", "verification-code")),
        *(f"user=me {name}={WORDS}; pass: {WORDS}" for name in ("code", "session")),
        *(f"{given} {WORDS * 3}" for given in ("bearer", "Bearer", "sent as bearer")),
        *(f"{before}sk-{WORDS * 4}" for before in ("", "with ", "/v1/")),
        f"bearer {WORDS}",
    ],
)
def test_secrets_of_letters_alone_are_none_of_the_words_of_a_text(text: str) -> None:
    assert WORDS not in redact(text) and WORDS not in str(redact([{"name": text}]))
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": text}}
    assert WORDS not in str(redact({"trainer": {"logger": [logger]}}))


HARMLESS = [
    "data.key_column is 'x'; allowed: a column",
    "http://host:8080/a@b.csv and https://example.org/@user/post?versionId=7&download=true",
    "tokenizer: CLIP, author: me, the first pass: 3 of 4, a code: NoSuchKey, session: closed",
    "NoCredentialsError: Unable to locate credentials",
    "TokenRetrievalError: Error when retrieving token from sso: Token has expired and refresh failed",
    "SignatureDoesNotMatch: The request signature we calculated does not match the signature you provided",
    "InvalidAccessKeyId: The AWS Access Key Id you provided does not exist in our records",
    "ExpiredToken: The provided token has expired",
    "{'Error': {'Code': 'SlowDown', 'Message': 'Please reduce your request rate.'}, 'HTTPStatusCode': 503}",
    "An error occurred (AccessDenied) when calling the PutObject operation, code=AccessDenied, exit code=85",
    "there is no option --tokens; did you mean --token? session -> closed, tokenizer -> CLIP, a bearer of good news",
    "pin_memory=True, pin=4, login: done, a ratio of 3:4 @ 60 fps, /a:b@c, s3://bucket/a:b@c, at 12:30@noon, key: value@x",
    "code=NoSuchBucket, code: RequestTimeTooSkewed",
    "session=<Session at 0x1>, code=ENOSPC, code=DEADLINE_EXCEEDED, session=closed",
    "the code: python, my session: monday, auth: failed, pass: done, a pass: two of four; code: InternalError",
    "bearer characteristics, the bearer of it, sk-ating, ask-ed",
    "a:b@c, style:anime@home, lora:detail@0.8, (style:flat@home:1.2), 12:30@noon",
    "//a:b/c, //cdn.example.org:8080/@scope/x, // me@x",
    "docker run -u 1000:1000 --user app:app, python -u -m a:b, sort -u -unit:second, --user-agent foo:bar, --user me",
    "max_new_tokens=64, num_tokens: 12, 'tokens_per_s': 3.5",
    "pad_token='<pad>', eos_token=</s>, pad_token_id=49407, additional_special_tokens=['<a>']",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_words_and_the_errors_of_s3_stay(text: str) -> None:
    assert redact(text) == text and redact([{"a": text}]) == [{"a": text}]
    refuse_credentials("data.prompts", text)


def test_options_are_redacted_by_their_names() -> None:
    secret = {"token": [SECRET], "tokens": SECRET, "pw": SECRET, "code": "WaterMelon", "pat": SECRET, "cookie": {"a": SECRET}}
    secret |= {"otp": 123456, "pin": "4711", "login": SECRET}
    harmless = {"pad_token": "<pad>", "max_new_tokens": 64, "code": 404, "key": "x", "seed": 1, "author": "me", "token": None}
    assert redact(secret) == dict.fromkeys(secret, "***") and redact(harmless) == harmless
    assert redact({"headers": [["Authorization", SECRET], ["Accept", "x"]]}) == {
        "headers": [["Authorization", "***"], ["Accept", "x"]]
    }


def test_what_the_process_was_given_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"trainer:\n  logger:\n    init_args:\n      password: '{SECRET}-4'\n      url: ftp://me:{SECRET}-5@host\n")
    for name, value in {
        "MY_TOKEN": f"{SECRET}-1",
        "DATABASE_URL": f"postgres://u:{SECRET}-2@h/d",
        "REPORTING_DSN": f"postgres://u:{SECRET}-6@h/d",
        "SESSION_ID": f"{SECRET}-7",
        "MY_KEY": f"{SECRET}-8",
        "SOME_DSN": f"host=db password={SECRET}-9",
        "SESSION": f"{SECRET}-10",
        "SORT_KEY": "prompt",
        "HOST_KEY": str(tmp_path),
        "DESKTOP_SESSION": "ubuntu",
        "PWD": "/home/somebody",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["x", "--config", str(config), "--trainer.logger.api_key", f"{SECRET}-3"])
    assert redact(" ".join(f"/a/{SECRET}-{i}/b" for i in range(1, 11))) == " ".join(["/a/***/b"] * 10)
    assert redact(f"/home/somebody/x, prompt, {tmp_path}, ubuntu") == f"/home/somebody/x, prompt, {tmp_path}, ubuntu"


LONG = (
    "a:m@",
    "m",
    "紅",
    "m ",
    "token",
    "token=",
    "token ",
    "a=",
    "-u a:",
    "-u",
    "auth=(",
    "//",
    "//a:",
    "a:b1@",
    "?",
    "&a",
    "://:x",
    "://a@",
    "@",
    "'",
    '"',
    "a\t",
    " ",
    "a:",
    "=",
    "#a",
    "--x-user",
)
LONGER = ("token='", 'pw":"', "cookie: a=b; ", "eyJ-", "hf_", "-----BEGIN PRIVATE KEY-----", "Authorization: Bearer ")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("start", "end"), [("", ""), ("", "@host"), ("-u", "")])
def test_long_texts_take_linear_time(start: str, end: str) -> None:
    for piece in (*LONG, *LONGER):
        seconds = []
        for size in (1 << 14, 1 << 17):
            started = time.process_time()
            redact(start + piece * (size // len(piece)) + end)
            seconds.append(time.process_time() - started)
        assert seconds[1] < 32 * seconds[0] + 0.1, piece  # quadratic is 64 times


def test_what_is_shortened_is_cut_between_words() -> None:
    said = one_line(OSError(f"{'x' * 284} signed with {SECRET}"))
    assert said == f"OSError: {'x' * 284} ..." and error_line(ValueError("bad")) == "ValueError: bad"
    assert error_line(ValueError("")) == "ValueError" and len(error_line(ValueError("long " * 1000))) <= 256
    assert SECRET not in one_line(OSError(f"ftp://me:{SECRET}{'x' * 1000}@host"))
    assert error_line(RuntimeError("m" * 100_000)) == "RuntimeError: ..."


@pytest.mark.parametrize("option", ["output.url", "data.prompts", "model.path"])
def test_urls_with_credentials_are_refused_at_the_door(
    option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    defaults = {"model.path": "shapes-xl", "data.prompts": "p.txt", "output.url": str(tmp_path / "corpus")}
    for url in URLS:
        given = defaults | {option: url}
        monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *(f"--{name}={value}" for name, value in given.items())])
        assert cli.main(sys.argv[1:]) == 2
        captured = capfd.readouterr()
        assert f"{option} is a url with credentials in it; allowed: a url without them, and" in captured.err
        assert captured.err.count("\n") == 1 and SECRET not in captured.err + captured.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["output.image_format", "nosuch.option", "data.prompt_column"])
def test_no_refusal_repeats_it(
    option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na red circle\n")
    given = {"data.prompts": str(tmp_path / "prompts.csv"), "output.url": str(tmp_path / "corpus"), "model.path": "shapes-xl"}
    for value in (URLS[0], f"password={SECRET}"):
        monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *(f"--{n}={v}" for n, v in (given | {option: value}).items())])
        assert cli.main(sys.argv[1:]) == 2
        captured = capfd.readouterr()
        assert captured.err.count("generate: error: ") == 1 and SECRET not in captured.err + captured.out


@pytest.mark.parametrize("name", ["version", "prefix", "name"])
def test_a_logger_does_not_write_it_into_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    value = f"host=db user=u password={SECRET}"
    given = [
        "generate",
        "--model.path=shapes-xl",
        "--data.prompts=p.txt",
        f"--output.url={tmp_path / 'corpus'}",
        *logger,
        f"--trainer.logger.{name}={value}",
    ]
    monkeypatch.setattr("sys.argv", ["hybridiff", *given])
    assert cli.main(given) == 2
    captured = capfd.readouterr()
    assert f"trainer.logger.{name} holds a secret; allowed: " in captured.err and SECRET not in captured.err + captured.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["corpus.urls={}", "plot={}", "nosuch.option={}"])
def test_the_benchmark_repeats_it_in_no_refusal(
    option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--{option.format(URLS[2])}", "--corpus.device=nosuch" if "corpus" in option else "--subject.device=nosuch"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
    assert benchmark.main() == 2
    captured = capfd.readouterr()
    assert captured.err.count("benchmark: error: ") == 1 and SECRET not in captured.err + captured.out


@pytest.mark.parametrize("given", [[f"--output.url={URLS[0]}"], ["--output.url", URLS[4]], ["--trainer.logger.pw", SECRET]])
def test_no_batch_script_is_made_with_it(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["submit", *given]) == 2
    captured = capfd.readouterr()
    assert " holds a secret, and SLURM shows the arguments" in captured.err and captured.err.count("\n") == 1
    assert SECRET not in captured.err + captured.out and list(tmp_path.iterdir()) == []


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
    assert cli.main(["verify", str(tmp_path), "--processes", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("***") >= 2 and "signed with ***" in captured.out and SECRET not in captured.out + captured.err
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["corrupt"], summary["unreadable"]) == (1, 2)
    assert cli.main(["verify", str(tmp_path / SECRET)]) == 2
    assert SECRET not in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.parametrize("command", [["verify"], ["status"], ["status", "--watch"]], ids=" ".join)
def test_commands_on_a_corpus_refuse_urls_with_credentials(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for url in URLS:
        assert cli.main([*command, url]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"{command[0]}: error: CORPUS is a url with credentials in it; allowed: ")
        assert captured.err.count("\n") == 1 and SECRET not in captured.err + captured.out


def test_so_do_the_library_and_the_benchmark() -> None:
    for url in URLS:
        with pytest.raises(UsageError, match=r"^output\.url is a url with credentials in it; allowed: "):
            Corpus(url)
        with pytest.raises(UsageError, match=r"^corpus\.urls is a url with credentials in it; allowed: "):
            CorpusConfig(urls=["/tmp", url])


def test_no_row_and_no_lost_shard_says_it(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))

    def open_shard(index: int) -> ShardWriter:
        if index == 1:
            raise OSError(f"aws_secret_access_key={SECRET}")
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG)

    writer = BackgroundWriter(open_shard, PNG, is_transient=lambda _: True)
    error = f"OSError: PUT https://host/x?sig={SECRET}, password: {SECRET}"
    writer.put(0, [dataclasses.replace(result(0, failed=True), error=error)], True, {})
    writer.put(1, [result(1)], True, {})
    writer.close()
    assert writer.lost == {1: "OSError: aws_secret_access_key=***"} and corpus.committed() == {0}
    assert not [name for name, data in files(corpus).items() if SECRET.encode() in data]


@pytest.fixture
def redacted_logs() -> Iterator[None]:
    create, form = logging.getLogRecordFactory(), warnings.formatwarning
    install_redaction()
    yield
    logging.setLogRecordFactory(create)
    warnings.formatwarning = form


def test_log_records_and_warnings_lose_it(redacted_logs: None, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise OSError(f"token={SECRET}")
    except OSError:
        logging.getLogger("somebody.else").exception("GET %s failed, %d times", URLS[0], 3)
    assert SECRET not in caplog.text and "GET s3://***@bucket/corpus failed, 3 times" in caplog.text and "OSError" in caplog.text
    assert SECRET not in warnings.formatwarning(f"password={SECRET}", UserWarning, "a.py", 1)


PLANTED = """
import logging, os, warnings
from lightning.pytorch import Callback

class Planted(Callback):
    def __init__(self, OPTIONS, crash: bool = False) -> None:
        self.crash = crash

    def on_result(self, result) -> None:
        given = os.environ["PLANTED"].split()
        log = logging.getLogger("planted")
        log.warning("environment: %s", " ".join(given))
        log.warning("password=%s, then token: %s", "MELON-LOG-1-x", "MELON-LOG-2-x")
        warnings.warn("Authorization: Bearer MELON-WARN-3-x")
        try:
            raise RuntimeError("GET https://u:MELON-EXC@/4-x@host/?code=MELON-EXC-5-x")
        except RuntimeError:
            log.exception("jwt=MELON-LOG-6-x")
        if self.crash:
            raise RuntimeError("cookie: a=MELON-CRASH-7-x; b=MELON-CRASH-8-x")
"""
OPTIONS = {
    "password": "MELON-OPT-9",
    "pw": "MELON-OPT-10",
    "jwt": "MELON-OPT-11",
    "code": "MELON-OPT-12",
    "pat": "MELON-OPT-13",
    "cookie": "MELON-OPT-14",
    "session": "MELON-OPT-15",
    "api_key": "MELON-OPT-16",
    "Authorization": "Basic MELON-OPT-17",
    "url": "https://host/x?pass=MELON-OPT-18&access_token=MELON-OPT-19",
    "target": "postgres://u:MELON-@/OPT-20@db/x",
    "text": "host=db user=u password=MELON-OPT-21",
    "header": "Cookie: session=MELON-OPT-22; x=MELON-OPT-23",
}
VARIABLES = {
    "MY_SECRET_TOKEN": "MELON-ENV-24",
    "DB_PASS": "MELON-ENV-25",
    "GITHUB_PAT": "MELON-ENV-26",
    "PGPASSWORD": "MELON-ENV-27",
    "APP_JWT": "MELON-ENV-28",
    "MYSQL_PWD": "MELON-ENV-29",
    "FSSPEC_S3_SECRET": "MELON-ENV-30",
    "DATABASE_URL": "postgres://u:MELON-ENV-31@h/d",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("crash", [pytest.param(False, marks=pytest.mark.slow), True])
def test_thirty_secrets_in_a_run_come_out_nowhere(tmp_path: Path, crash: bool) -> None:
    folder = tmp_path / VARIABLES["MY_SECRET_TOKEN"]  # a path that holds a value of the environment
    folder.mkdir()
    (folder / "prompts.txt").write_text("a red circle\n")
    (tmp_path / "planted.py").write_text(PLANTED.replace("OPTIONS", ", ".join(f"{name}: str" for name in OPTIONS)))
    callback = {"class_path": "planted.Planted", "init_args": OPTIONS | {"crash": crash}}
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "logs", "prefix": "x"},
    }
    trainer = {"accelerator": "cpu", "callbacks": [callback], "logger": logger}
    sections = {"model": {"path": "shapes-xl"}, "sampling": {"steps": 2}, "trainer": trainer}
    (tmp_path / "config.yaml").write_text(json.dumps(sections | {"output": {"url": "corpus"}}))
    planted = " ".join(value.rpartition(":")[2].partition("@")[0] for value in VARIABLES.values())
    environment = os.environ | ENVIRONMENT | VARIABLES | {"PLANTED": planted, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hybridiff", "generate", "--config", "config.yaml", f"--data.prompts={folder}/prompts.txt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == int(crash), done.stderr
    assert "environment: *** ***" in done.stderr and "password=***, then token: ***" in done.stderr
    written = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = {"planted.py", "config.yaml"}
    assert not [name for name, data in written.items() if b"MELON" in data and name not in given and "__pycache__" not in name]
    assert "MELON" not in done.stdout + done.stderr
    run = json.loads(written["corpus/run.json"])["configuration"]
    assert run["data"]["prompts"] == [f"{tmp_path}/***/prompts.txt"]
    assert crash or [name for name in written if name.startswith("logs/") and name.endswith(".csv")]


CRASHING = """
import runpy
import jobs.benchmark.plot

def fail(url):
    raise RuntimeError(f"login with {url.partition('me:')[2].partition('@')[0]} was refused")

jobs.benchmark.plot.check_plot = fail
runpy.run_module("jobs.benchmark", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_the_traceback_of_a_crash_of_the_benchmark_loses_it(tmp_path: Path) -> None:
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    config = "configs/bench/fidelity-xl.yaml"
    command = [sys.executable, str(script), "--config", config, f"--plot=ftp://me:{SECRET}@host/x.png"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and "RuntimeError: login with *** was refused" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_a_traceback_loses_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = UsageError(f"password={SECRET}")
    report_crash(UsageError, error, None)
    assert capsys.readouterr().err.endswith("UsageError: password=***\n")
