"""evaluate: KL divergence, agreement and multiple-choice tasks against transformers and lm-evaluation-harness, and plans that are measured
without being made."""

import json
import re
import shutil

import multiple_choice
import numpy as np
import pytest
import reference
from checkpoints import DEMO_MODEL
from conftest import run_job
from safetensors.torch import save_file
from transformers import AutoTokenizer

DEMO = DEMO_MODEL.parent
TWO_MODELS = ["mixtral_bf16_window", "qwen2_moe_f32_sparse_step"]

QUESTIONS = [
    {"context": "Now Sam has the", "choices": [" red coat", " white", " white drum and a hat"], "answer": 1},
    {"context": "37-27=", "choices": ["12", "10", "11", "21"], "answer": 1},
    {"context": "count to 3: ", "choices": ["1 2 3", "3 2 1"], "answer": 0},
    {"context": "line\n\n", "choices": ["one", "two words", "\n"], "answer": 2},
    {"context": "", "choices": ["a fox", "the fox ran"], "answer": 1},
    {"context": "  \t", "choices": ["b", "c d"], "answer": 0},
    {"context": "Das heißt «naïve» 日本", "choices": ["語 です", "é", " 😀"], "answer": 1},
    {"context": "Question: who?\nAnswer:", "delimiter": " ", "choices": ["Ruth gave the coat", "Dora", "nobody"], "answer": 2},
    {"context": "word " * 700, "choices": ["and so on", "stop"], "answer": 0},
    {"context": "x", "choices": [" " + "y z " * 40, " q"], "answer": 1},
]  # fmt: skip


def text_file(folder, documents: int):
    """A text, and its ids: each document ended by EOS."""
    lines = (DEMO / "data" / "validation.jsonl").read_text().splitlines()[:documents]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ids = []
    for line in lines:
        ids += [*tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return folder / "text.jsonl", np.array(ids)


def task_file(folder, questions=None, name="quiz"):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in questions or QUESTIONS))
    return file


def evaluate(folder, model, ranks=1, expect=0, arguments=(), top=None, threads=1, **evaluation):
    job = {"model": str(model), "work": str(folder / "work"), "device": {"dtype": "float32"}, "evaluation": evaluation} | (top or {})
    result = run_job(folder, ranks, job, "evaluate", arguments=arguments, expect=expect, threads=threads)
    if expect:
        return result.stderr
    found = json.loads((folder / "work" / "evaluation.json").read_text())
    assert found["format"] == "hcsmoe-evaluation/1"
    found["said"] = result.stdout + result.stderr
    return found


def items(folder, model: str) -> dict:
    """Task -> log-likelihoods of each question's choices."""
    found = {}
    for line in (folder / "work" / "evaluation_items.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["model"] == model:
            found.setdefault(entry["task"], []).append(entry["log_likelihoods"])
    return found


@pytest.mark.parametrize("name", TWO_MODELS)
def test_divergence_and_agreement(golden, tmp_path, name):
    case, length = golden(name), 90
    file, ids = text_file(tmp_path, 25)
    assert len(ids) > 6 * length and len(ids) % length > 1, "several windows, and a shorter last one"
    merged = case.folder / "merged"
    sums = multiple_choice.divergence(reference.load_model(case.model), reference.load_model(merged), ids, length)
    results = []
    for ranks, batch_tokens in ((1, 0), (3, 100)):
        folder = tmp_path / str(ranks)
        found = evaluate(folder, merged, ranks, perplexity=[str(file)], length=length, reference=str(case.model), batch_tokens=batch_tokens)
        original, compressed = found["models"]
        assert [original["experts"], compressed["experts"]] == [case.experts, case.kept]
        (text,) = compressed["perplexity"]
        assert "kl_divergence" not in original["perplexity"][0]
        assert text["positions"] == len(ids) and text["tokens"] == len(ids) - text["windows"]
        for key, values in (("kl_divergence", sums["kl"]), ("top1_agreement", sums["agreements"])):
            value, error = multiple_choice.ratio(values, sums["positions"])
            print(f"{name} on {ranks} ranks: {key} {text[key]['value']} ± {text[key]['standard_error']}, transformers {value} ± {error}")
            assert text[key]["value"] == pytest.approx(value, rel=1e-3)
            assert text[key]["standard_error"] == pytest.approx(error, rel=1e-2)
        assert text["kl_divergence"]["value"] > 0.01 and 0 < text["top1_agreement"]["value"] < 1, "the models differ"
        for entry, model in ((original, case.model), (compressed, merged)):
            expected, _ = reference.perplexity(reference.load_model(model), ids, length)
            assert entry["perplexity"][0]["perplexity"] == pytest.approx(expected, rel=1e-4)
        assert re.search(r"\bmodel +\d+ .* ± .* ± ", found["said"]), found["said"]
        results.append([original["perplexity"], compressed["perplexity"]])
    assert results[0] == results[1], "the same numbers on any number of ranks and with any batches"


def test_a_model_does_not_differ_from_itself(golden, tmp_path):
    case = golden(TWO_MODELS[0])
    file, _ = text_file(tmp_path, 10)
    copy = tmp_path / "copy"
    shutil.copytree(case.model, copy)
    text = evaluate(tmp_path, copy, perplexity=str(file), length=50, reference=str(case.model))["models"][1]["perplexity"][0]
    assert text["kl_divergence"]["value"] == 0 and text["top1_agreement"]["value"] == 1


@pytest.mark.parametrize("name", TWO_MODELS)
def test_log_likelihoods_of_choices(golden, tmp_path, name):
    case = golden(name)
    model = reference.load_model(case.model)
    expected = multiple_choice.log_likelihoods(model, case.model, QUESTIONS, case.config["max_position_embeddings"])
    file, results = task_file(tmp_path), []
    for ranks, batch_tokens in ((1, 0), (2, 64)):
        folder = tmp_path / str(ranks)
        found = evaluate(folder, case.model, ranks, tasks=str(file), batch_tokens=batch_tokens)
        values = items(folder, "model")["quiz"]
        error = max(abs(a - b) for ours, theirs in zip(values, expected, strict=True) for a, b in zip(ours, theirs, strict=True))
        print(f"{name} on {ranks} ranks: log-likelihoods, largest error {error:.2e}")
        assert error < 1e-3
        (task,) = found["models"][0]["tasks"]
        assert task["name"] == "quiz" and task["items"] == len(QUESTIONS)
        for key, normalised in (("acc", False), ("acc_norm", True)):
            share, standard_error = multiple_choice.accuracy(QUESTIONS, expected, normalised)
            assert task[key]["value"] == share and task[key]["standard_error"] == pytest.approx(standard_error)
        results.append((values, task))
    assert results[0] == results[1]


def test_questions_whose_choices_have_contexts(golden, tmp_path):
    """They have no acc_norm, and then the mean has none; tests/clients/test_lm_eval.py holds them against lm_eval."""
    case = golden(TWO_MODELS[1])
    several = [{"contexts": [question["context"] + choice for choice in question["choices"]], "choices": [" end"] * len(question["choices"])} | {"answer": 0}
               for question in QUESTIONS[:3]]  # fmt: skip
    single = [{"context": context, "choices": [" end", " no"], "answer": 0} for question in several for context in question["contexts"]]
    files = [task_file(tmp_path, several, "gaps"), task_file(tmp_path, single, "single"), task_file(tmp_path)]
    found = evaluate(tmp_path, case.model, tasks=[str(file) for file in files])
    gaps, plain, quiz = found["models"][0]["tasks"]
    assert "acc_norm" not in gaps and "acc_norm" in plain and "acc_norm" in quiz
    assert list(found["models"][0]["mean"]) == ["acc"]
    values = items(tmp_path, "model")
    assert [value for question in values["gaps"] for value in question] == [first for first, _ in values["single"]], "each after its own context"
    assert gaps["acc"]["value"] == np.mean([np.argmax(question) == 0 for question in values["gaps"]])
    _, accuracies, normalised = [block.splitlines() for block in re.split(r"\] *acc.*\n", found["said"])]
    assert heads(accuracies) == ["experts", "size", "gaps", "single", "quiz", "average"] and heads(normalised) == ["single", "quiz"]


def heads(lines: list) -> list:
    """Column heads of the first table among the lines."""
    return next(line for line in lines if "   " in line).split("]", 1)[1].split()


def test_the_table(golden, main_job, tmp_path):
    """A row a model: size, every text, every task, average. What is too wide for a line goes on below."""
    case = golden(TWO_MODELS[1])
    output, _ = main_job(TWO_MODELS[1])
    file, _ = text_file(tmp_path, 8)
    tasks = [task_file(tmp_path, QUESTIONS[:5], f"a_task_of_long_name_{number}") for number in range(6)]
    found = evaluate(tmp_path, output, reference=str(case.model), perplexity=str(file), length=64, tasks=[str(task) for task in tasks])
    lines = [line.split("] ", 1)[1] for line in found["said"].splitlines() if line.startswith("[") and "] " in line]
    title = next(i for i, line in enumerate(lines) if line.startswith("acc of each task (questions): a_task_of_long_name_0 (5), "))
    assert re.fullmatch(r"text\.jsonl: \d+ windows of 64 tokens", lines[title - 1])
    lines = lines[title + 1 :]
    assert lines[9] == "acc_norm", "three blocks of a head and two models: text, tasks, average"
    lines = lines[:16]
    assert max(len(line) for line in lines) == 153, "of 160: the average, 16 more, follows below"
    cells = {"reference": [], "model": []}
    columns = []
    for head, *rows in (lines[0:3], lines[3:6], lines[6:9], lines[10:13], lines[13:16]):
        columns += [cell.strip() for cell in re.split(r" {2,}", head) if cell.strip()]
        for name, row in zip(("reference", "model"), rows, strict=True):
            first, *others = [cell.strip() for cell in re.split(r" {3,}", row)]
            assert first == name
            cells[name] += others
    names = [task.stem for task in tasks]
    assert columns == ["experts", "size", "perplexity", "KL (nats)", "top-1", *names, "average", *names, "average"]
    for name, model in zip(cells, found["models"], strict=True):
        (text,) = model["perplexity"]
        show = lambda estimate: f"{estimate['value']:.3f} ± {estimate['standard_error']:.3f}"
        compared = ["-", "-"]
        if name == "model":
            divergence = text["kl_divergence"]
            compared = [f"{divergence['value']:.4f} ± {divergence['standard_error']:.4f}", show(text["top1_agreement"])]
        assert cells[name][0] == str(model["experts"]) and cells[name][2].startswith(f"{text['perplexity']:.4f} ± ")
        assert cells[name][3:5] == compared
        assert cells[name][5:] == [show(of[key]) for key in ("acc", "acc_norm") for of in [*model["tasks"], model["mean"]]]


def test_the_demo_model(tmp_path):
    """tests/data/README.md: mean accuracy 0.836, measured with evaluate.py."""
    files = sorted((DEMO / "tasks").glob("*.jsonl"))
    (model,) = evaluate(tmp_path, DEMO_MODEL, 2, tasks=[str(file) for file in files])["models"]
    assert [task["name"] for task in model["tasks"]] == [file.stem for file in files]
    assert model["mean"]["acc"]["value"] == pytest.approx(0.836, abs=0.0015)
    assert model["mean"]["acc"]["value"] == pytest.approx(np.mean([task["acc"]["value"] for task in model["tasks"]]))
    assert model["mean"]["acc"]["standard_error"] == pytest.approx(
        np.sqrt(np.sum([task["acc"]["standard_error"] ** 2 for task in model["tasks"]])) / len(files)
    )


def test_bos_is_added_where_the_configuration_says_so(golden, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(golden(TWO_MODELS[0]).model, model)
    bos = AutoTokenizer.from_pretrained(model).eos_token  # named, but not added
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": bos}))
    with_bos = [question | {"context": bos + question["context"]} for question in QUESTIONS if question["context"].strip()]
    without = [question for question in QUESTIONS if question["context"].strip()]
    written, added = task_file(tmp_path, with_bos, "written"), task_file(tmp_path, without, "added")
    evaluate(tmp_path, model, tasks=[str(written), str(added)], top={"calibration": {"add_bos": True}})
    found = items(tmp_path, "model")
    assert found["written"] == found["added"], "not twice, where the text begins with it"
    evaluate(tmp_path, model, tasks=[str(added)])
    assert items(tmp_path, "model")["added"] != found["added"]


@pytest.mark.parametrize("name", TWO_MODELS)
def test_a_plan_is_measured_as_the_checkpoint_that_it_makes(golden, main_job, tmp_path, name):
    case = golden(name)
    output, work = main_job(name)
    file, _ = text_file(tmp_path, 12)
    what = {"perplexity": str(file), "length": 64, "tasks": str(task_file(tmp_path))}
    plan = work / "plan.json"
    planned = evaluate(tmp_path / "plan", case.model, 2, arguments=["--plan", plan], **what)["models"]
    made = evaluate(tmp_path / "made", output, reference=str(case.model), **what)["models"]
    assert [model["name"] for model in planned] == ["model", str(plan)] and planned[1]["plan"] == str(plan)
    for key in ("perplexity", "tasks", "experts", "bytes"):
        assert planned[0][key] == made[0][key] and planned[1][key] == made[1][key], key


@pytest.mark.parametrize("merge", ["frequency-aligned", "zipit"])
def test_a_plan_whose_merge_aligns_units(golden, tmp_path, merge):
    case = golden(TWO_MODELS[1])
    file, _ = text_file(tmp_path, 8)
    what = {"perplexity": str(file), "length": 64}
    run_job(tmp_path, 2, case.job(tmp_path / "output", merge=merge) | {"evaluation": what})
    made = json.loads((tmp_path / "output.work" / "evaluation.json").read_text())["models"]
    top = {"work": str(tmp_path / "output.work")}
    plan = shutil.copy(tmp_path / "output.work" / "plan.json", tmp_path / "plan.json")
    run_job(tmp_path / "plan", 1, {"model": str(case.model), "device": {"dtype": "float32"}, "evaluation": what} | top, "evaluate",
            arguments=["--plan", plan])  # fmt: skip
    planned = json.loads((tmp_path / "output.work" / "evaluation.json").read_text())["models"]
    assert [model["perplexity"] for model in planned] == [model["perplexity"] for model in made]


def test_run_measures_original_and_output(golden, tmp_path):
    case = golden(TWO_MODELS[1])
    file, _ = text_file(tmp_path, 12)
    what = {"perplexity": str(file), "length": 64, "tasks": str(task_file(tmp_path))}
    result = run_job(tmp_path, 2, case.job(tmp_path / "output") | {"evaluation": what})
    apart = evaluate(tmp_path / "apart", tmp_path / "output", reference=str(case.model), **what)["models"]
    found = json.loads((tmp_path / "output.work" / "run.json").read_text())["evaluation"]
    assert found == json.loads((tmp_path / "output.work" / "evaluation.json").read_text())
    assert [model["name"] for model in found["models"]] == ["original", "compressed"]
    for here, there in zip(found["models"], apart, strict=True):
        assert {key: here[key] for key in ("perplexity", "tasks", "mean")} == {key: there[key] for key in ("perplexity", "tasks", "mean")}
    assert "compressed" in result.stderr and "KL" in result.stderr


@pytest.mark.parametrize("name", [*TWO_MODELS, "glm4_moe_f32_groups"])  # with all rows it has its groups
def test_an_aliased_router(golden, main_job, tmp_path, name):
    """Equals a checkpoint of E experts, in which every member of a cluster is the merged expert."""
    case = golden(name)
    output, work = main_job(name)
    plan = json.loads((work / "plan.json").read_text())
    plan["recipe"]["router"] = "alias"
    (tmp_path / "alias.json").write_text(json.dumps(plan))
    tensors, merged, experts = reference.read_tensors(case.model), reference.read_tensors(output), 0
    for layer in plan["layers"]:
        for number, cluster in enumerate(layer["clusters"]):
            for member in cluster["members"]:
                for tensor in list(tensors):
                    found = reference.EXPERT_NAME.fullmatch(tensor)
                    if found and (int(found[2]), int(found[3])) == (layer["layer"], member):
                        tensors[tensor] = merged[f"{found[1]}{number}{found[4]}"].clone()
                        experts += 1
    assert experts > 0
    aliased = tmp_path / "aliased"
    shutil.copytree(case.model, aliased, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, aliased / "model.safetensors", metadata={"format": "pt"})
    file, ids = text_file(tmp_path, 12)
    _, found = evaluate(tmp_path / "plan", case.model, 2, arguments=["--plan", tmp_path / "alias.json"], perplexity=str(file), length=64)["models"]
    expected, _ = reference.perplexity(reference.load_model(aliased), ids, 64)
    print(f"{name}: aliased perplexity {found['perplexity'][0]['perplexity']}, transformers {expected}")
    assert found["perplexity"][0]["perplexity"] == pytest.approx(expected, rel=1e-4)
    unaliased, _ = reference.perplexity(reference.load_model(output), ids, 64)
    assert abs(unaliased - expected) > 1e-3 * expected, "the router matters here"

    for command, arguments in (("apply", ["--plan", tmp_path / "alias.json"]), ("run", [])):
        job = case.job(tmp_path / "output", router="alias")
        result = run_job(tmp_path / command, 1, job, command, arguments=arguments, expect=2)
        assert "alias keeps a router row" in result.stderr and "evaluate CONFIG --plan" in result.stderr and "frequency" in result.stderr
    assert not (tmp_path / "output").exists()


def test_models_that_cannot_be_compared(golden, tmp_path):
    case = golden(TWO_MODELS[0])
    file, ids = text_file(tmp_path, 4)
    tokenizer = json.loads((case.model / "tokenizer.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(case.model, other)
    vocabulary = tokenizer["model"]["vocab"]
    unused = next(number for number in range(500, 1000) if number not in ids)
    a, b = [next(token for token, number in vocabulary.items() if number == wanted) for wanted in (ids[0], unused)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = evaluate(tmp_path, other, 2, expect=2, perplexity=str(file), length=50, reference=str(case.model))
    assert "tokenizers" in said and "other" in said and "evaluation.reference" in said
    smaller = tmp_path / "smaller"
    shutil.copytree(case.model, smaller, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = reference.read_tensors(case.model)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:1000].clone()
    save_file(tensors, smaller / "model.safetensors", metadata={"format": "pt"})
    config = reference.read_config(smaller) | {"vocab_size": 1000}
    (smaller / "config.json").write_text(json.dumps(config))
    said = evaluate(tmp_path, smaller, expect=2, perplexity=str(file), length=50, reference=str(case.model))
    assert "1024" in said and "1000" in said and "vocabulary" in said


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"context": "a", "choices": [" b", " c"], "answer": 2}', r"quiz\.jsonl, line 2.*answer.*from 0 to 1, not 2"),
        ('{"context": "a", "choices": [], "answer": 0}', r"quiz\.jsonl, line 2.*choices.*a list of 0"),
        ('{"context": "a", "choices": [" b", ""], "answer": 0}', r"quiz\.jsonl, line 2.*choice 1 is empty"),
        ('{"context": "a", "choices": [" b", " c"]', r"quiz\.jsonl, line 2"),
        (json.dumps({"context": "a", "choices": [" b", " c d" * 600], "answer": 0}), r"quiz\.jsonl, line 2, choice 1.*\d+ tokens.*reads 512"),
    ],
)
def test_bad_questions(golden, tmp_path, line, words):
    file = task_file(tmp_path, QUESTIONS[:1])
    file.write_text(file.read_text() + line + "\n")
    for ranks in (1, 2):
        said = evaluate(tmp_path, golden(TWO_MODELS[0]).model, ranks, expect=2, tasks=str(file))
        assert re.search(words, said, re.DOTALL), said
        assert said.count("error:") == 1, "rank 0 alone speaks"
    assert not (tmp_path / "work" / "evaluation.json").exists()
