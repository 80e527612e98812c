"""Negative prompts are refused wherever they would change nothing, those of the options and those of the rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest

from hybridiff.config import DataConfig, ModelConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import UsageError
from hybridiff.models.facts import check_model, read_facts
from hybridiff.models.guidance import refused_negative_prompts
from hybridiff.prompts.plan import Plan, make_plan
from tests.prompts.planning import DISK, MEMORY, samples_of

OFF = "none with sampling.guidance_scale at"
TRUE_CFG = "none unless sampling.options has a true_cfg_scale above 1"
DISTILLED = "none with a model that has its guidance distilled"


@pytest.mark.parametrize(
    ("pipeline", "scale", "options", "distilled", "refused"),
    [
        ("StableDiffusionXLPipeline", 5.0, {}, False, None),
        ("StableDiffusionXLPipeline", 1.0, {}, False, f"{OFF} 1 or below"),
        ("StableDiffusion3Pipeline", 0.0, {}, False, f"{OFF} 1 or below"),
        ("PixArtSigmaPipeline", 1.0, {}, False, f"{OFF} 1 or below"),
        ("StableDiffusionPipeline", 8.0, {}, True, DISTILLED),  # LCM: the scale is an input of the network
        ("ZImagePipeline", 0.5, {}, False, None),  # e_c + s (e_c - e_u)
        ("ZImagePipeline", 0.0, {}, False, f"{OFF} 0 or below"),
        ("Krea2Pipeline", 0.0, {}, False, f"{OFF} 0 or below"),
        ("FluxPipeline", 3.5, {}, False, TRUE_CFG),
        ("FluxPipeline", 1.0, {"true_cfg_scale": 4.0}, False, None),
        ("FluxPipeline", 3.5, {"true_cfg_scale": 1}, False, TRUE_CFG),
        ("QwenImagePipeline", 1.0, {}, False, None),
        ("QwenImagePipeline", 5.0, {"true_cfg_scale": 1.0}, False, TRUE_CFG),
        ("HunyuanImagePipeline", 5.0, {}, True, DISTILLED),
        ("Flux2Pipeline", 4.0, {}, False, "none with Flux2Pipeline"),
        ("SanaSprintPipeline", 4.5, {}, False, "none with SanaSprintPipeline"),
    ],
)
def test_where_negative_prompts_change_nothing(
    pipeline: str, scale: float, options: dict[str, Any], distilled: bool, refused: str | None
) -> None:
    sampling = SamplingConfig(guidance_scale=scale, options=options)
    found = refused_negative_prompts(getattr(diffusers, pipeline), sampling, distilled)
    assert found is None if refused is None else found is not None and found.startswith(refused)


def test_the_options_negative_prompt() -> None:
    model = ModelConfig("shapes-xl")
    facts = read_facts(model)
    check_model(model, SamplingConfig(negative_prompt="ugly"), facts)
    for facts_, scale in ((facts, 1.0), (replace(facts, distilled=True), 5.0)):
        with pytest.raises(UsageError, match=r"sampling\.negative_prompt is 'ugly'; allowed: none with"):
            check_model(model, SamplingConfig(negative_prompt="ugly", guidance_scale=scale), facts_)


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl"])
def test_a_rows_own_negative_prompt(name: str, tmp_path: Path) -> None:
    rows = {
        "p.csv": "prompt,negative_prompt\na,\nb, \nc,ugly\n",
        "p.tsv": "prompt\tnegative_prompt\na\t\nb\t \nc\tugly\n",
        "p.jsonl": '{"prompt": "a", "negative_prompt": null}\n{"prompt": "b", "negative_prompt": ""}\n'
        '{"prompt": "c", "negative_prompt": "ugly"}\n',
    }[name]
    path = tmp_path / name
    path.write_text(rows)
    assert [sample.negative_prompt for sample in samples_of(plan_of(path, None))][2] == "ugly"
    for held_bytes in (MEMORY, DISK):
        with pytest.raises(UsageError, match=rf"{name}, line [34]: negative_prompt is 'ugly'; allowed: none here$"):
            plan_of(path, "none here", held_bytes)
    path.write_text(rows.replace("ugly", ""))  # nothing is said, so nothing is ignored
    assert plan_of(path, "none here").rows == 3


def test_a_table_kept_from_a_guided_run_is_read_again_without_guidance(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,negative_prompt\na,ugly\n")
    corpus = Corpus(str(tmp_path / "corpus"))
    guided = plan_of(tmp_path / "p.csv", None, DISK, folder=corpus, role="lead")
    assert corpus.names("tables") and guided.rows == 1
    with pytest.raises(UsageError, match="negative_prompt is 'ugly'"):
        plan_of(tmp_path / "p.csv", "none here", DISK, folder=corpus, role="lead")


def plan_of(path: Path, allowed: str | None, held_bytes: int = MEMORY, **options: Any) -> Plan:
    data = DataConfig([str(path)])
    return make_plan(data, SamplingConfig(), 1000, held_bytes=held_bytes, negative_prompts=allowed, **options)
