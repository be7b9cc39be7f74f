"""README.md of an output folder: metadata that the hub takes, numbers that were measured, and nothing that a name can smuggle in."""

import json
import re
import shutil

import pytest
import yaml
from checkpoints import DEMO_MODEL
from conftest import ONE_A_FAMILY, digests, run_job
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from test_verify import verify

NAME = ONE_A_FAMILY[0]
VALIDATION = DEMO_MODEL.parent / "data" / "validation.jsonl"
TASKS = sorted((DEMO_MODEL.parent / "tasks").glob("*.jsonl"))[:2]

CARD = """---
license: other
license_name: "a: licence"
license_link: LICENSE
language: [en, de]
tags: [moe, chat, "tricky: 'tag'"]
datasets:
- owner/data
pipeline_tag: text-generation
model-index:
- name: Original
  results: []
base_model: owner/older
---
# The original
"""


def parts(card: str):
    """Metadata as PyYAML has it, and the text behind it."""
    match = re.match(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    return yaml.safe_load(match[1]), match[2]


def copy_of(case, folder, card=CARD):
    shutil.copytree(case.model, folder)
    (folder / "README.md").write_text(card)
    return folder


def test_of_a_plain_run(golden, main_job):
    case, (output, work) = golden(NAME), main_job(NAME)
    card = (output / "README.md").read_text()
    metadata, text = parts(card)
    assert metadata == {"library_name": "transformers", "base_model": "model", "pipeline_tag": "text-generation",
                        "tags": ["moe", "expert-merging", "hcsmoe_dist"]}  # fmt: skip
    loaded = ModelCard.load(output / "README.md")
    assert loaded.data.to_dict()["tags"] == metadata["tags"] and loaded.data.library_name == "transformers"
    validate_repo_id(metadata["base_model"])
    assert f"# model with {case.kept} of {case.experts} experts a layer" in text
    run = json.loads((work / "run.json").read_text())
    for fingerprint in (run["plan"], run["origin"]["checkpoint"], run["origin"]["calibration"]):
        assert f"| `{fingerprint}` |" in text
    assert (output / "hcsmoe_plan.json").read_bytes() == (work / "plan.json").read_bytes()
    for expected in ("report.html", "hcsmoe_dist verify", "from_pretrained", "vllm serve"):
        assert expected in text
    assert "## Results" not in text and "README.original.md" not in text
    assert run["checksums"]["output"].keys() == digests(output).keys() - {"checksums.xxh128"}


@pytest.mark.parametrize("compression", [
    {"method": "hc-smoe"}, {"method": "hc-smoe", "feature": "cka"}, {"method": "kmeans", "init": "random", "seed": 3}, {"method": "fuzzy-cmeans"},
    {"method": "reap", "protect": [1]}, {"method": "auto", "rounds": 1},
], ids=lambda c: "_".join(map(str, c.values())))  # fmt: skip
def test_its_configuration_makes_the_same_model(golden, tmp_path, compression):
    case = golden(NAME)
    job = case.job(tmp_path / "first") | {"compression": compression | {"experts": case.kept}}
    run_job(tmp_path, 2, job)
    metadata, text = parts((tmp_path / "first" / "README.md").read_text())
    plan = json.loads((tmp_path / "first" / "hcsmoe_plan.json").read_text())
    pruned = all(len(cluster["members"]) == 1 for layer in plan["layers"] for cluster in layer["clusters"])  # auto may choose to
    assert pruned or compression["method"] != "reap"
    assert ("expert-pruning" in metadata["tags"]) == pruned and ("expert-merging" in metadata["tags"]) != pruned
    made_by = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert made_by["calibration"].pop("files") == [case.ids_file.name]
    made_by["calibration"]["files"] = [str(case.ids_file)]
    again = {key: job[key] for key in ("model", "device", "output_shard_size") if key in job} | {"output": str(tmp_path / "again")} | made_by
    run_job(tmp_path, 1, again)
    assert digests(tmp_path / "again") == digests(tmp_path / "first"), "the card's own bytes too"


def test_what_the_original_has_is_carried_over(golden, tmp_path):
    original = copy_of(golden(NAME), tmp_path / "Original-8x")
    licences = {"LICENSE": b"free\r\n\xff", "LICENSE.md": b"# terms", "NOTICE.txt": b"notice", "USE_POLICY.md": b"be kind", "USE_POLICY": b""}
    for name, content in licences.items():
        (original / name).write_bytes(content)
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps(config | {"_name_or_path": "owner/Original-8x"}))
    job = golden(NAME).job(tmp_path / "output") | {"model": str(original)}
    run_job(tmp_path, 1, job)
    output = tmp_path / "output"
    for name, content in licences.items():
        assert (output / name).read_bytes() == content
    assert (output / "README.original.md").read_text() == CARD
    metadata, text = parts((output / "README.md").read_text())
    assert metadata == {
        "library_name": "transformers", "base_model": "owner/Original-8x", "license": "other", "license_name": "a: licence",
        "license_link": "LICENSE", "language": ["en", "de"], "datasets": ["owner/data"], "pipeline_tag": "text-generation",
        "tags": ["moe", "expert-merging", "hcsmoe_dist", "chat", "tricky: 'tag'"],
    }  # fmt: skip
    assert "(README.original.md)" in text and "# The original" not in text
    assert "holds what its plan makes of" in verify(output, 2)

    # Compressed once more, nothing of it is lost, and the new folder's files are its own.
    run_job(tmp_path, 1, job | {"model": str(output), "output": str(tmp_path / "again"), "compression": {"method": "f-prune", "experts": 2}})
    again = tmp_path / "again"
    assert (again / "README.original.original.md").read_text() == CARD
    assert (again / "README.original.md").read_bytes() == (output / "README.md").read_bytes()
    assert (again / "hcsmoe_plan.original.json").read_bytes() == (output / "hcsmoe_plan.json").read_bytes()
    assert (again / "report.original.html").exists()
    assert parts((again / "README.md").read_text())[0]["license"] == "other"
    assert "holds what its plan makes of" in verify(again, 2)


def test_results_are_those_that_were_measured(golden, tmp_path):
    job = golden(NAME).job(tmp_path / "output") | {
        "evaluation": {"perplexity": [str(VALIDATION)], "tasks": [str(file) for file in TASKS], "length": 64}
    }
    run_job(tmp_path, 2, job, timeout=300)
    text = (tmp_path / "output" / "README.md").read_text()
    before, after = json.loads((tmp_path / "output.work" / "evaluation.json").read_text())["models"]
    rows = [[cell.strip().replace("\\", "") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]

    def shown(estimate, digits):
        return f"{estimate['value']:.{digits}f} ± {estimate['standard_error']:.{digits}f}"

    was, is_now = before["perplexity"][0], after["perplexity"][0]
    perplexities = [f"{m['perplexity']:.4f} ± {m['perplexity_standard_error']:.4f}" for m in (was, is_now)]
    assert [VALIDATION.name, f"{was['windows']} of 64 tokens", *perplexities, shown(is_now["kl_divergence"], 4), shown(is_now["top1_agreement"], 3)] in rows
    for old, new in zip(before["tasks"] + [{"name": "mean", "items": ""} | before["mean"]], after["tasks"] + [after["mean"]]):
        expected = [old["name"], str(old["items"]), *(shown(m[key], 3) for key in ("acc", "acc_norm") for m in (old, new))]
        assert expected in rows, f"{expected} in {rows}"


HOSTILE = "a *b* <script>x</script> | [c](javascript:1) `d` --- license: evil # www.example.com"  # a path has no line breaks


def test_hostile_names(golden, tmp_path):
    card = "---\n" + json.dumps({
        "license": "mit\n---\nlibrary_name: evil", "tags": ["\x7f\u0085\u2028<b>", "- x: y", "&a", "*a", "\U0001f600"], "language": {"a": "b"},
        "license_link": "x" * 5000, "pipeline_tag": "'\"}{][,",
    }, ensure_ascii=False) + "\n---\n<script>"  # fmt: skip
    folder = tmp_path / "-".join(re.split("/", HOSTILE))
    original = copy_of(golden(NAME), folder, card)
    calibration = tmp_path / "``` # evil.npy"
    shutil.copy(golden(NAME).ids_file, calibration)
    job = golden(NAME).job(tmp_path / "output") | {"model": str(original)}
    job["calibration"]["files"] = [str(calibration)]
    run_job(tmp_path, 1, job)
    metadata, text = parts((tmp_path / "output" / "README.md").read_text())
    assert metadata["library_name"] == "transformers" and metadata["license"] == "mit\n---\nlibrary_name: evil"
    assert metadata["tags"][3:] == ["\x7f\u0085\u2028<b>", "- x: y", "&a", "*a", "\U0001f600"] and metadata["pipeline_tag"] == "'\"}{][,"
    assert "base_model" not in metadata, "no name that the hub allows"
    assert "language" not in metadata and "license_link" not in metadata
    title = next(line for line in text.splitlines() if line.startswith("# "))
    for character in "*<>[]|`_":
        assert not re.search(rf"(?<!\\){re.escape(character)}", title), (character, title)
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1, "a name makes no headings"
    assert "\x1b" not in text and "www.example" not in text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)\n```\n", text, re.DOTALL)[1])["calibration"]["files"] == ["``` # evil.npy"]
    ModelCard.load(tmp_path / "output" / "README.md")


@pytest.mark.parametrize("card", ["---\nlicense: [mit\n---\n", "---\nlicense: mit\n", "---\nlicense: &a mit\ntags: [*a]\n---\n", "no metadata",
                                  "", "---\n- a\n---\n", "---\n" + "[" * 5000 + "\n---\n", "---\n---\n"])  # fmt: skip
def test_cards_that_have_no_metadata_to_carry(golden, tmp_path, card):
    original = copy_of(golden(NAME), tmp_path / "model", card)
    run_job(tmp_path, 1, golden(NAME).job(tmp_path / "output") | {"model": str(original)})
    assert set(parts((tmp_path / "output" / "README.md").read_text())[0]) == {"library_name", "base_model", "pipeline_tag", "tags"}
    assert (tmp_path / "output" / "README.original.md").read_text() == card


def test_base_model_of_a_cache_folder(golden, tmp_path):
    snapshot = tmp_path / "models--owner--Name-8x" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    copy_of(golden(NAME), snapshot)
    run_job(tmp_path, 1, golden(NAME).job(tmp_path / "output") | {"model": str(snapshot)})
    assert parts((tmp_path / "output" / "README.md").read_text())[0]["base_model"] == "owner/Name-8x"


def test_a_card_that_cannot_be_made_is_a_warning(golden, tmp_path):
    original = copy_of(golden(NAME), tmp_path / "model", "x" * 20_000_000)
    result = run_job(tmp_path, 1, golden(NAME).job(tmp_path / "output") | {"model": str(original)})
    assert "no model card" in result.stderr and "README.md" in result.stderr
    assert (tmp_path / "output" / "config.json").exists() and not (tmp_path / "output" / "README.md").exists()
    assert "holds what its plan makes of" in verify(tmp_path / "output")
