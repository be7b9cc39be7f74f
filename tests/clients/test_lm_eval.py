"""evaluate and launch/export_tasks.py against EleutherAI's lm-evaluation-harness, which runs in an interpreter of its own (tests/clients/run.sh)."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DEMO_MODEL
from conftest import REPOSITORY, run_job, run_program
from test_clients import CLIENTS

pytestmark = pytest.mark.skipif("lm_eval" not in CLIENTS, reason="HCSMOE_CLIENTS names no lm_eval: tests/clients/run.sh")
DEMO_TASKS = DEMO_MODEL.parent / "tasks"

AWKWARD = [
    {"context": "Now Sam has the", "choices": ["red coat", "white", "white drum and a hat"], "answer": 1},
    {"context": "count to 3: ", "choices": ["1 2 3", "3 2 1"], "answer": 0},
    {"context": "line\n\n", "choices": ["one", "two words", "\n"], "answer": 2},
    {"context": "", "choices": ["a fox", "the fox ran"], "answer": 1},
    {"context": "Das heißt «naïve» 日本", "choices": ["語 です", "é", "😀"], "answer": 1},
    {"context": "word " * 700, "choices": ["and so on", "stop"], "answer": 0},
    {"context": "x", "choices": ["y z " * 40, "q"], "answer": 1},
    {"context": "as long as each other", "choices": ["same", "same"], "answer": 0},
]
AWKWARD_CONTEXTS = [
    {"contexts": ["Ruth gave Dora the coat, for Ruth", "Ruth gave Dora the coat, for Dora"], "continuation": "was warm.", "answer": 0},
    {"contexts": ["", "The cup, "], "continuation": "is too big\n", "answer": 1},
    {"contexts": ["a " * 600, "日本"], "continuation": "é", "answer": 1},
]


def harness(script: str, *arguments) -> str:
    """A script by lm_eval's interpreter; nothing is asked of the network."""
    home = Path(arguments[1]).parent
    environment = {"OMP_NUM_THREADS": "1", "HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = run_program([CLIENTS["lm_eval"], script, *arguments], timeout=600, environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""


def task_file(folder: Path, name: str, rows: list, **templates):
    """A task of lm_eval over a local file; JSON is YAML."""
    data = folder / f"{name}.data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": str(data)}, "test_split": "train",
            "output_type": "multiple_choice", "target_delimiter": " ", "metric_list": metrics} | templates  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def questions_of_the_demo() -> tuple:
    """As lm_eval has them, choices without the blank before them; and questions that have several contexts and one continuation."""
    plain, several = [], []
    for name in ("lists", "puzzles", "stories", "code"):
        for line in (DEMO_TASKS / f"{name}.jsonl").read_text().splitlines()[:15]:
            row = json.loads(line)
            plain.append(row | {"choices": [choice.strip() for choice in row["choices"]]})
            several.append({"contexts": [row["context"] + choice for choice in row["choices"]], "continuation": "Then the", "answer": row["answer"]})
    return plain, several


@pytest.mark.parametrize("name", ["demo", "mixtral_bf16_window", "deepseek_v3_bf16_yarn"])
def test_the_harness_measures_the_same(golden, tmp_path, name):
    model = DEMO_MODEL if name == "demo" else golden(name).model
    plain, several = questions_of_the_demo() if name == "demo" else (AWKWARD, AWKWARD_CONTEXTS)
    files = tmp_path / "files"
    files.mkdir()
    task_file(files, "quiz", plain, doc_to_text="context", doc_to_choice="choices", doc_to_target="answer")
    task_file(files, "gaps", several, doc_to_text="answer", doc_to_choice="contexts", doc_to_target="continuation")
    version = harness(Path(__file__).with_name("lm_eval_results.py"), model, files, tmp_path / "theirs.json", "quiz", "gaps")
    theirs = json.loads((tmp_path / "theirs.json").read_text())

    harness(REPOSITORY / "launch" / "export_tasks.py", "--folder", tmp_path / "tasks", "--include-path", files, "quiz", "gaps")
    tasks = [str(tmp_path / "tasks" / f"{task}.jsonl") for task in ("quiz", "gaps")]
    job = {"model": str(model), "work": str(tmp_path / "work"), "device": {"dtype": "float32"}, "evaluation": {"tasks": tasks}}
    said = run_job(tmp_path, 2, job, "evaluate").stderr
    (found,) = json.loads((tmp_path / "work" / "evaluation.json").read_text())["models"]
    ours = {"quiz": [], "gaps": []}
    for line in (tmp_path / "work" / "evaluation_items.jsonl").read_text().splitlines():
        ours[json.loads(line)["task"]].append(json.loads(line)["log_likelihoods"])

    for task in found["tasks"]:
        expected, results = theirs[task["name"]]["log_likelihoods"], theirs[task["name"]]["results"]
        error = max(abs(a - b) for item, other in zip(ours[task["name"]], expected, strict=True) for a, b in zip(item, other, strict=True))
        print(f"{name}, {task['name']}: {task['items']} items, {version}: log-likelihoods, largest difference {error:.1e}; acc {task['acc']['value']:.4f}")
        assert error < 1e-3
        for key in ("acc", "acc_norm")[: 2 if task["name"] == "quiz" else 1]:
            assert task[key]["value"] == pytest.approx(results[f"{key},none"], abs=1e-12)
            assert task[key]["standard_error"] == pytest.approx(results[f"{key}_stderr,none"], rel=1e-9)
    quiz, gaps = found["tasks"]
    if name == "demo":
        assert 0.3 < quiz["acc"]["value"] < 1 and quiz["acc"] != quiz["acc_norm"], "the two are not the same thing here"

    # Where choices are contexts, lm_eval, if it is asked for acc_norm, divides by the length of the contexts, which are not what is scored.
    normalised = [np.argmax(np.divide(item, [len(context) or np.nan for context in row["contexts"]])) for item, row in zip(expected, several)]
    if all(all(row["contexts"]) for row in several):
        assert results["acc_norm,none"] == pytest.approx(np.mean(np.equal(normalised, [row["answer"] for row in several])))
    assert "acc_norm" not in gaps and "acc_norm" not in found["mean"] and "acc_norm" in said


@pytest.mark.parametrize("fewshot", [0, 2])
def test_exported_tasks_of_the_paper(tmp_path, fewshot):
    """A line gives the requests that lm_eval constructs, and the answer that its scoring takes as right."""
    version = harness(Path(__file__).with_name("paper_tasks.py"), tmp_path / "tasks", tmp_path / "expected.json", fewshot)
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert sorted(expected) == ["arc_challenge", "arc_easy", "boolq", "hellaswag", "mmlu", "openbookqa", "rte", "winogrande"]
    assert len(expected["mmlu"]) == 57 * 3, "every subject"
    several = set()
    for name, items in expected.items():
        lines = [json.loads(line) for line in (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()]
        assert len(lines) == len(items) >= 3
        for line, item in zip(lines, items, strict=True):
            contexts = line["contexts"] if "contexts" in line else [line["context"]] * len(line["choices"])
            assert [[c, line.get("delimiter", "") + choice] for c, choice in zip(contexts, line["choices"], strict=True)] == item["requests"], name
            assert line["answer"] == item["right"], name
            if "contexts" in line:
                several.add(name)
        assert len({item["right"] for item in items}) > 1
        for line in lines:
            assert fewshot == 0 or "contexts" in line or "\n\n" in line["context"], "examples stand before the question"
    assert several == {"winogrande"}
    print(f"{version}, {fewshot} examples: {sum(map(len, expected.values()))} questions of {len(expected)} tasks, every request the same")
