"""``hybridiff evaluate``: mistakes are one line with exit code 2, before a network is loaded or anything is written."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridiff.evaluate.request import METRICS, Request
from hybridiff.evaluate.requirement import named_values
from tests.cli.refusals import refusal
from tests.evaluate.evaluations import evaluate, extractors, figures, make_images, noisy, torchscript, write_corpus

MISTAKES = {
    "": "CORPUS is not given; usage: hybridiff evaluate",
    "here --metrix=fid": "there is no option --metrix; did you mean --metrics?",
    "here --no-progres": "there is no option --no-progres; did you mean --no_progress?",
    "here --metrics psnr": "--metrics psnr is given without --against; allowed: a corpus or real:IMAGES to compare with",
    "here --against there --metrics psnr,fidd": "--metrics has 'fidd'; did you mean fid?",
    "here --against there --metrics xyz": f"--metrics has 'xyz'; allowed: {', '.join(METRICS)}",
    "here --scores clipp": "--scores has 'clipp'; did you mean clip?",
    "here --scores xyz": "--scores has 'xyz'; allowed: clip, aesthetic, nsfw, embeddings, or module:Class of your own",
    "here --against there --join order": "--join is 'order'; allowed: key, prompt",
    "here --against real:there": "--against is real:there without --metrics; allowed with it: fid, kid, prdc, fd_dinov2, cmmd",
    "here --against real:there --metrics fid,ssim": "--metrics has ssim, which compares pairs, and --against is real:there",
    "here --against real: --metrics fid": "--against is 'real:'; allowed: real: with a folder",
    "here --against there --name ../x": "--name is '../x'; allowed: letters",
    "here --batch_size 0": "--batch_size is '0'; allowed: a whole number from 1 on",
    "here --against there --require psnr>": "--require is 'psnr>'; allowed: comparisons",
    "here --against there --require fid<=5": "--require names 'fid'",
    "here --scores my:Score --require psnr>=35": "--require names 'psnr'",
    "here --scores my:Score --require images.blak==0": "--require names 'images.blak' (did you mean images.black?)",
    "here --scores my:Score --require score.p5>0": "--require names 'score.p5'",
    "here --scores my:Score --require score.p05>0": "here holds no corpus",
    "s3://user:secret12@x/y --scores nsfw": "CORPUS is a url with credentials in it",
    "nosuch://here --scores nsfw": "CORPUS is nosuch://here: no file system",
    "here --against nosuch://there": "--against is nosuch://there: no file system",
    "here --scores nsfw": "here holds no corpus: run.json is missing; allowed: the output of hybridiff generate",
    "here --against there --extractors none.yaml": "--extractors none.yaml can't be read (No such file or directory)",
    "here --against there --metrics fid": "the metric fid needs the extractor 'inception', which --extractors does not give; "
    "allowed: a YAML file with inception: {path: ...}; InceptionV3 as clean-fid uses it: https://nvlabs-fi-cdn.nvidia.com/",
    "here --scores aesthetic": "the score aesthetic needs the extractor 'clip', which --extractors does not give",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes_are_one_line(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(["evaluate", *given.split()], tmp_path, capsys)
    assert line.startswith(f"evaluate: error: {MISTAKES[given]}")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchmetrics" else find(name))
    assert evaluate("here", "--against", "there") == 2
    expected = "evaluate: error: evaluate needs torchmetrics, which is not installed: pip install 'hybridiff[evaluate]'\n"
    assert capsys.readouterr().err == expected


FILES: dict[str, tuple[Any, str]] = {
    "a list": ([1], "holds list; allowed: names with extractors"),
    "a name": ({"inceptoin": {"path": "x.pt"}}, "has 'inceptoin', which nothing uses; did you mean inception?"),
    "no path": ({"inception": {"kind": "onnx"}}, "inception is {'kind': 'onnx'}; allowed: a mapping with path"),
    "an option": (
        {"inception": {"path": "x.pt", "preprocesing": "clip"}},
        "inception has 'preprocesing'; did you mean preprocessing?",
    ),
    "a kind": ({"inception": {"path": "x.pt", "kind": "keras"}}, "inception.kind is 'keras'; allowed: transformers, torchscript"),
    "a preprocessing": (
        {"inception": {"path": "x.pt", "preprocessing": "clean"}},
        "inception.preprocessing is 'clean'; allowed: ",
    ),
    "a size": ({"inception": {"path": "x.pt", "size": "large"}}, "inception.size is 'large'; allowed: a whole number"),
    "a file": (
        {"inception": {"path": "nowhere.pt"}},
        "the extractor 'inception', which the metric fid needs, is nowhere.pt: no such file",
    ),
    "a directory": (
        {"inception": {"path": "."}},
        "allowed: a directory of transformers, with config.json and weights as safetensors",
    ),
}


@pytest.mark.parametrize("mistake", FILES)
def test_mistakes_in_extractors_are_one_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, message = FILES[mistake]
    (tmp_path / "extractors.yaml").write_text(json.dumps(document))
    arguments = ["here", "--against", "there", "--metrics", "fid", "--extractors", tmp_path / "extractors.yaml"]
    assert evaluate(*arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and message in line


def test_damaged_networks_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", make_images(4))
    (tmp_path / "broken.pt").write_bytes(b"no network")
    given = extractors(tmp_path, inception={"path": "broken.pt"})
    assert evaluate(tmp_path / "corpus", "--against", tmp_path / "corpus", "--metrics", "fid", "--extractors", given) == 2
    assert "the extractor 'inception' can't be loaded from" in capsys.readouterr().err
    torchscript(tmp_path / "broken.pt")
    given = extractors(tmp_path, inception={"path": "broken.pt", "preprocessing": "yahoo-open-nsfw"})
    assert evaluate(tmp_path / "corpus", "--against", tmp_path / "corpus", "--metrics", "fid", "--extractors", given) == 2
    line = capsys.readouterr().err
    assert "failed on images" in line and line.count("\n") == 1


def test_a_corpus_that_is_not_whole_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(change: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_corpus(folder, make_images(12), shard_size=4)
        change(folder)
        assert evaluate(folder, "--against", folder) == 2
        assert not (folder / "evaluation").exists()
        return capsys.readouterr().err

    assert "1 of 3 shards are not committed, such as commits/00001.json" in refusal(lambda f: (f / "commits/00001.json").unlink())
    assert "images/00002.tar is missing" in refusal(lambda f: (f / "images/00002.tar").unlink())
    assert "is not whole: images/00000.tar" in refusal(lambda f: (f / "images/00000.tar").write_bytes(b"short"))
    assert "is not whole: commits/00000.json" in refusal(lambda f: (f / "commits/00000.json").write_text("{"))
    other = refusal(lambda f: _replace(f / "commits/00001.json", '"fingerprint": "', '"fingerprint": "0'))
    assert "is not whole: commits/00001.json: ValueError: is of another run than run.json" in other
    assert "run.json is not JSON" in refusal(lambda f: (f / "run.json").write_text("{"))


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_other_sizes_and_failed_corpora_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "small", make_images(4))
    write_corpus(tmp_path / "large", make_images(4, side=40))
    write_corpus(tmp_path / "tiny", make_images(4, side=8))
    write_corpus(tmp_path / "failed", dict.fromkeys(make_images(4)))
    assert evaluate(tmp_path / "small", "--against", tmp_path / "large") == 2
    assert "4 of 4 pairs have other sizes, such as 'image-0000': 32 x 32 in" in capsys.readouterr().err
    assert evaluate(tmp_path / "failed", "--against", tmp_path / "small") == 2
    assert "holds no image: all of its 4 rows failed" in capsys.readouterr().err
    assert evaluate(tmp_path / "tiny", "--against", tmp_path / "tiny") == 2
    assert "has images of 8 pixels on a side and ssim needs 11" in capsys.readouterr().err


def test_distributions_of_too_few_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", make_images(5))
    given = extractors(tmp_path, inception={"path": str(torchscript(tmp_path / "small.pt"))})
    options = ["--metrics", "fid,prdc", "--extractors", given]
    assert evaluate(tmp_path / "corpus", "--against", tmp_path / "corpus", *options) == 2
    assert "--metrics has prdc, and" in (line := capsys.readouterr().err) and "holds 5 images; allowed: 6 or more" in line


def test_real_images_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", make_images(4))
    given = extractors(tmp_path, inception={"path": str(torchscript(tmp_path / "small.pt"))})
    options = ["--metrics", "fid", "--extractors", given]
    (tmp_path / "empty").mkdir()
    for name in ("mixed/a.png", "mixed/b.tar", "torn/a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    messages = {"empty": "holds no image", "nowhere": "holds no image", "mixed": "holds image files and tars"}
    messages["torn"] = "a.parquet can't be read as Parquet"
    for name, message in messages.items():
        assert evaluate(tmp_path / "corpus", "--against", f"real:{tmp_path / name}", *options) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "corpus" / "evaluation").exists()


def test_own_scores_that_do_not_work_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus", make_images(4))
    call = "\n    def __call__(self, images, rows):\n        return "
    classes = {
        "Words": "['a'] * len(images)",
        "Few": "[1.0]",
        "Key": "{'key': [1.0] * len(images)}",
        "Fid": "[1.0] * len(images)",
    }
    text = "".join(f"class {name}:{call}{result}\n" for name, result in classes.items())
    (tmp_path / "wrong_scores.py").write_text(
        f"{text}class Needs:\n    def __init__(self, x): pass\n    def __call__(self, *_): pass\nvalue = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    expected = {
        "Words": "Words gives words that are no numbers",
        "Few": "Few gives 1 few for 4 images",
        "Key": "Key names a column 'key'",
        "Fid": "Fid names a column 'fid'; allowed: a name that no other column has",
        "Needs": "Needs can't be made",
        "value": "'wrong_scores:value', a int; allowed: a class",
        "Nothing": "'wrong_scores:Nothing', which can't be imported",
    }
    for name, message in expected.items():
        assert evaluate(tmp_path / "corpus", "--scores", f"wrong_scores:{name}") == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1
    del sys.modules["wrong_scores"]


def test_every_name_that_a_requirement_may_have_is_in_a_result(tmp_path: Path) -> None:
    write_corpus(tmp_path / "fast", noisy(make_images(8)))
    write_corpus(tmp_path / "full", make_images(8))
    given = extractors(tmp_path, inception={"path": str(torchscript(tmp_path / "small.pt"))})
    metrics = ("psnr", "ssim", "fid", "kid", "prdc")
    options = ["--metrics", ",".join(metrics), "--extractors", given, "--scores", "nsfw"]
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full", *options) == 0
    request = Request(("fast",), against="full", metrics=metrics, scores=("nsfw",))
    assert set(request.figures()) <= set(named_values(figures(tmp_path / "fast", "full")))
