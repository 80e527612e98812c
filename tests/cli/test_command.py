"""The command ``hybridiff``: its commands, its help, and how a process ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridiff import __version__, cli
from hybridiff.cli import generate
from hybridiff.errors import StorageError, UsageError
from tests.optional import needs


def test_without_arguments_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: hybridiff {generate,") and captured.err.count("\n") == 1


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hybridiff {__version__}\n"
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and help_line in text for name, help_line in cli.COMMANDS.items())


NEAR = [("generte", "generate"), ("VERIFY", "verify"), ("stats", "status"), ("help", "--help"), ("x", None)]


@pytest.mark.parametrize(("given", "meant"), NEAR)
def test_an_unknown_command_gets_a_suggestion(given: str, meant: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([given]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"hybridiff: error: there is no command {given}; allowed: generate, ")
    assert line.endswith(f"did you mean {meant}?\n" if meant else f"{list(cli.COMMANDS)[-1]}\n")


def test_an_unknown_option_before_the_command_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--versoin"]) == 2
    allowed = "--help, --version, --print_completion; did you mean --version?"
    assert capsys.readouterr().err == f"hybridiff: error: there is no option --versoin; allowed: {allowed}\n"


@pytest.mark.parametrize("name", ["a\x1b[31mred\x07", "a\x9b2J", "a\u202egnp.", "a\x7f", "a\x08b"])
def test_names_of_files_reach_the_terminal_with_escapes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["verify", name],
        ["status", name],
        [name],
        ["verify", f"--{name}"],
        ["generate", "--model.path=shapes-xl", "--output.url=corpus", f"--data.prompts={name}.txt"],
    ):
        assert cli.main(command) == 2
        captured = capsys.readouterr()
        assert name not in captured.err and name.encode("unicode_escape").decode() in captured.err.replace("\\\\", "\\")
        assert captured.err.rstrip("\n").isprintable() and captured.out == ""


MISTAKES = {
    "status": "CORPUS is not given; usage: hybridiff status [-h] [--watch] CORPUS",
    "status runs --wach": "there is no option --wach; did you mean --watch?",
    "status nowhere": "nowhere holds no run.json: no job has started on it yet",
    "verify": "CORPUS is not given; usage: hybridiff verify [-h] [--processes N] [--repair] CORPUS",
    "verify nowhere": "nowhere holds no corpus: neither run.json nor a marker in commits/",
    "verify runs others": "others is one argument too many; usage: hybridiff verify [-h] [--processes N] [--repair] CORPUS",
    "verify runs --nosuch=1": "there is no option --nosuch; allowed: --processes, --repair",
    "verify runs --processes=x": "--processes is 'x'; allowed: a whole number from 1 on",
    "submit --nodes=0": "--nodes is '0'; allowed: a whole number from 1 on",
    "submit --arrya": "there is no option --arrya; did you mean --array?",
    "status --wach": "there is no option --wach; did you mean --watch?",
    "evaluate --agianst=x": "there is no option --agianst; did you mean --against?",
    "evaluate runs --no_progres": "there is no option --no_progres; did you mean --no_progress?",
    "select --wher x": "there is no option --wher; did you mean --where?",
    "publish --licence=mit": "there is no option --licence; did you mean --license?",
    "compare --rowss 3": "there is no option --rowss; did you mean --rows?",
    "compare --stpes 3": "there is no option 'stpes'; did you mean sampling.steps?",
    "generate --seedd=3": "there is no option 'seedd'; did you mean sampling.seed?",
    "generate --nosuch": "there is no option 'nosuch'; allowed: those of --help",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes_of_every_command_are_one_line(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(given.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"{given.split()[0]}: error: {MISTAKES[given]}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("generate", "--data.prompts=nosuch.csv"),
        ("generate", "--model.path=./nosuch"),
        ("compare", "--data.prompts=nosuch.csv"),
        ("submit", "--data.prompts=nosuch.csv"),
        ("submit", "--output.image_format=gif"),
    ],
)
def test_mistakes_in_options_and_paths_answer_before_a_library_is_loaded(command: str, wrong: str) -> None:
    given = [command, "--config=demo", "--output.url=nowhere", wrong]
    program = (
        "import sys\n"
        f"from hybridiff.cli import main\ncode = main({given})\n"
        "assert not {'torch', 'diffusers', 'transformers', 'lightning'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(f"{command}: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("given", [["verify", "r\udcfc"], ["generate", "--output.url=\udcc3"], ["select", "a", "-o", "\udcfc"]])
def test_arguments_that_are_no_text_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(given) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{given[0]}: error: '") and line.endswith(
        "is not UTF-8; allowed: UTF-8, in a locale such as C.UTF-8\n"
    )


@pytest.mark.parametrize("given", [["--help"], ["--version"], ["verify", "--help"], ["generate", "--help"]])
def test_a_reader_that_has_gone_is_no_error(given: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hybridiff", *given]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_written_is_an_error_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hybridiff", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1 and done.stderr.startswith("hybridiff: error: OSError: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("columns", ["60", "100"])
def test_help_fits_the_terminal(
    command: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    wide = [line for line in text.splitlines() if len(line) > int(columns) and not line.startswith("    hybridiff ")]
    assert not wide and "``" not in text
    assert ("OPTIONS OF hybridiff generate" in text) == (command in ("compare", "submit"))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("x is 1;\nallowed: 2"), 2, "generate: error: x is 1; allowed: 2\n"),
        (StorageError("bucket/a is gone"), 1, "generate: error: StorageError: bucket/a is gone\n"),
        (KeyboardInterrupt(), 130, "generate: interrupted\n"),
    ],
)
def test_errors_of_a_command_end_in_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(generate, "main", fail)
    assert cli.main(["generate"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("number", "code"), [(5, 1), (116, 1), (13, 2)])
def test_verify_and_status_tell_storage_that_fails_from_a_mistake(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "from the storage")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.ls", fail)
    for command in ("verify", "status"):
        assert cli.main([command, str(tmp_path)]) == code
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith(f"{command}: error: ") and f"{tmp_path} can't be read (" in captured.err


@pytest.mark.parametrize("start", [["-m", "hybridiff", "generate"], ["jobs/generate.py"]], ids=" ".join)
def test_all_ways_to_start_a_command_are_the_same(start: list[str]) -> None:
    done = subprocess.run([sys.executable, *start, "--nosuch=1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("generate: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs("shtab", "completion")
    assert cli.main(["--print_completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*cli.COMMANDS, "--sampling.steps", "--processes", "--ranks_per_node"):
        assert word in script


def test_completion_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["--print_completion", "fish"]) == 2
    assert capsys.readouterr().err == "hybridiff: error: print_completion is 'fish'; allowed: bash, zsh, tcsh\n"
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print_completion", "bash"]) == 2
    assert "pip install 'hybridiff[completion]'" in capsys.readouterr().err
