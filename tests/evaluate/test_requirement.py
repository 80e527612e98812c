from typing import Any

import pytest

from hybridiff.errors import UsageError
from hybridiff.evaluate.requirement import named_values, parse

RESULT: dict[str, Any] = {
    "metrics": {
        "psnr": {"mean": 41.0, "p05": 33.5, "max": "inf", "ci95": [1, 2], "definition": "text", "rows": 8},
        "fid": {"value": 4.0, "extractor": {"sha256": "0"}},
        "clip": {"mean": None, "p05": None},
    },
    "rows": {"matched": 8, "failed": 0},
    "images": {"black": 1, "sizes": {"64x64": 8}},
}


@pytest.mark.parametrize(
    "text",
    [
        "psnr.p05 >= 33",
        "psnr >= 41 and fid <= 5",
        "psnr.max > 1e9",
        "not psnr < 40 and (fid > 100 or images.black <= 1)",
        "rows.matched == 8",
        "psnr != -1",
        "psnr > 40 or clip > 0",
        "not (fid > 5 and clip > 0)",
    ],
)
def test_what_is_met(text: str) -> None:
    assert parse(text).failures(RESULT) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("psnr.p05 >= 35", ["psnr.p05 is 33.5; required: >= 35"]),
        (
            "psnr.p05 >= 35 and fid <= 5 and rows.failed > 0",
            ["psnr.p05 is 33.5; required: >= 35", "rows.failed is 0; required: > 0"],
        ),
        ("clip > 0", ["clip is not computed; required: > 0"]),
        ("not clip > 0", ["not clip > 0 does not hold: clip is not computed"]),
        ("not (fid > 5 or clip > 0)", ["not (fid > 5 or clip > 0) does not hold: fid is 4, clip is not computed"]),
        ("not fid <= 5", ["not fid <= 5 does not hold: fid is 4"]),
        ("psnr < 1 or fid < 2", ["psnr < 1 or fid < 2 does not hold: psnr is 41, fid is 4"]),
    ],
)
def test_what_is_not_met_is_said(text: str, lines: list[str]) -> None:
    assert parse(text).failures(RESULT) == lines


@pytest.mark.parametrize(
    "text",
    [
        "",
        "psnr",
        "psnr >",
        "psnr > fid",
        "3 < psnr",
        "1 < psnr < 3",
        "psnr > True",
        "psnr > 'a'",
        "psnr > 1 if fid else 2",
        "__import__('os').system('x') > 1",
        "psnr[0] > 1",
        "psnr > 1; fid",
        "psnr > 1\nand fid",
        "psnr > 1 & fid < 2",
        "psnr > 1j",
        "(" * 900 + "psnr > 1" + ")" * 900,
        "psnr > 1 and " * 500 + "psnr > 1",
        "psnr > 1\0",
    ],
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--require is .*; allowed: comparisons of a metric with a number") as caught:
        parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_unknown_names_are_refused_with_the_known() -> None:
    with pytest.raises(UsageError, match=r"'psnr\.p5' \(did you mean psnr\.p05\?\); allowed: clip, clip\.mean, clip\.p05, fid"):
        parse("psnr.p5 > 1").failures(RESULT)
    with pytest.raises(UsageError, match="names 'fid'"):
        parse("psnr > 1 and fid < 3").check_names(["psnr"])
    parse("psnr > 1").check_names(["psnr"])


def test_names_of_a_result() -> None:
    values = named_values(RESULT)
    assert values["psnr"] == values["psnr.mean"] == 41 and values["psnr.max"] == float("inf") and values["clip"] is None
    assert values["images.black"] == 1 and "images.sizes" not in values and "fid.extractor" not in values
