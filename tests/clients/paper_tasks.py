"""launch/export_tasks.py on the eight tasks of the paper, over a few invented questions in the data sets' own columns: FOLDER OUT.json FEWSHOT.

Everything but the data is lm_eval's: its task files, templates and preprocessing. FOLDER gets the exported files; OUT.json has, for each of them, what
lm_eval itself would send and expect: [{"requests": [[context, continuation], ...], "right": index}, ...].
"""

import json
import logging
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

folder, out, fewshot = sys.argv[1:]
logging.disable(logging.WARNING)


def letters(texts: list, right: int, names: str = "ABCDE") -> dict:
    return {"choices": {"text": texts, "label": list(names[: len(texts)])}, "answerKey": names[right]}


ARC = [
    {"id": "a", "question": "Which of these is warm?", **letters(["ice", "a stove that is on", "snow", "shade"], 1)},
    {"id": "b", "question": "What do plants need?", **letters(["light", "sand", " two words ", "é"], 0, "1234")},
    {"id": "c", "question": "How many legs has an ant?", **letters(["four", "eight", "six"], 2)},
    {"id": "d", "question": "Which falls first?", **letters(["both", "the stone", "neither", "the leaf"], 0)},
]
BOOLQ = [
    {"question": "is ice cold", "passage": "Ice is frozen water.", "idx": 0, "label": 1},
    {"question": "can stones swim", "passage": "Stones sink.\nMost of them.", "idx": 1, "label": 0},
    {"question": "is 2 a prime", "passage": "2 is {{even}} and a prime.", "idx": 2, "label": 1},
]
HELLASWAG = [
    {
        "ind": number, "activity_label": "Baking bread", "ctx_a": "A man mixes flour.", "ctx_b": second, "ctx": "", "endings": endings,
        "source_id": "x", "split": "val", "split_type": "indomain", "label": label,
    }
    for number, (second, endings, label) in enumerate([
        ("he", ["kneads it.", "[substeps] throws  it away.", "sleeps [title] Wake up.", "sings."], "0"),
        ("then the dough", ["rises.", "runs.", "is blue.", "reads a book."], "0"),
        ("", ["The end.", "He waits an hour.", "No.", "Maybe."], "1"),
    ])
]  # fmt: skip
MMLU = [
    {"question": "  What is 2 + 2? ", "subject": "x", "choices": ["3", "4", "5", "6"], "answer": 1},
    {"question": "Which is a noun?", "subject": "x", "choices": ["run", "green", "tree", "the"], "answer": 2},
    {"question": "Pick D.", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": 3},
]
OPENBOOKQA = [
    {"id": "1", "question_stem": "The sun is", **letters(["a star", "a planet", "a moon", "cold"], 0)},
    {"id": "2", "question_stem": "A magnet attracts", **letters(["wood", "wool", "water", "iron"], 3)},
    {"id": "3", "question_stem": "Rain falls from ", **letters(["trees", "clouds", "stones", "cars"], 1)},
]
RTE = [
    {"sentence1": "Ruth has a red coat.", "sentence2": "Ruth has a coat.", "label": 0, "idx": 0},
    {"sentence1": "Sam walked home.", "sentence2": "Sam flew.", "label": 1, "idx": 1},
    {"sentence1": "It rained.", "sentence2": "The street was wet.", "label": 0, "idx": 2},
]
WINOGRANDE = [
    {"sentence": "Ruth gave Dora the coat because _ was warm.", "option1": "Ruth", "option2": "Dora", "answer": "1"},
    {"sentence": "The cup did not fit the box, as the _ was too big.", "option1": "box", "option2": "cup", "answer": "2"},
    {"sentence": "_ sang while Ann slept.", "option1": "Ann", "option2": "Bea", "answer": "2"},
]
COLUMNS = {
    ("allenai/ai2_arc", "ARC-Challenge"): ARC,
    ("allenai/ai2_arc", "ARC-Easy"): ARC,
    ("aps/super_glue", "boolq"): BOOLQ,
    ("super_glue", "boolq"): BOOLQ,
    ("Rowan/hellaswag", None): HELLASWAG,
    ("hellaswag", None): HELLASWAG,
    ("allenai/openbookqa", "main"): OPENBOOKQA,
    ("openbookqa", "main"): OPENBOOKQA,
    ("nyu-mll/glue", "rte"): RTE,
    ("glue", "rte"): RTE,
    ("allenai/winogrande", "winogrande_xl"): WINOGRANDE,
    ("winogrande", "winogrande_xl"): WINOGRANDE,
}


def in_memory(task, *_, **__):
    """In place of ConfigurableTask.download: each split has the questions in another order."""
    rows = COLUMNS.get((task.DATASET_PATH, task.DATASET_NAME))
    if task.DATASET_PATH == "cais/mmlu":
        rows = [row | {"subject": task.DATASET_NAME, "question": f"{row['question']} ({task.DATASET_NAME})"} for row in MMLU]
    assert rows, f"no columns of {task.DATASET_PATH}"
    splits = {task.config.training_split, task.config.validation_split, task.config.test_split, task.config.fewshot_split} - {None}
    task.dataset = DatasetDict({split: Dataset.from_list(rows[turn:] + rows[:turn]) for turn, split in enumerate(sorted(splits))})


def expected(task) -> list:
    """By lm_eval alone: its requests, and the choice that its own scoring calls right."""
    task.set_config(key="num_fewshot", value=int(fewshot))
    task.set_fewshot_seed(seed=1234)  # as simple_evaluate does
    task.build_all_requests()
    requests, docs = {}, {}
    for request in task.instances:
        requests.setdefault(request.doc_id, []).append(list(request.args))
        docs[request.doc_id] = request.doc
    items = []
    for number, pairs in requests.items():
        scores = [task.process_results(docs[number], [(float(i == best), False) for i in range(len(pairs))])["acc"] for best in range(len(pairs))]
        assert sorted(scores) == [0] * (len(pairs) - 1) + [1], scores
        items.append({"requests": pairs, "right": scores.index(1)})
    return items


ConfigurableTask.download = in_memory
program = Path(__file__).resolve().parents[2] / "launch" / "export_tasks.py"
export_tasks = runpy.run_path(str(program))
sys.argv = [str(program), "--folder", folder, "--fewshot", fewshot]
export_tasks["main"]()

from lm_eval.tasks import TaskManager  # noqa: E402: after download is replaced

manager = TaskManager()
by_task = {}
for name in export_tasks["PAPER"]:
    by_task[name] = [item for task in manager.load(name)["tasks"].values() for item in expected(task)]
Path(out).write_text(json.dumps(by_task), encoding="utf-8")
print(f"lm_eval {version('lm_eval')}")
