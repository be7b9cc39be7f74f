#!/usr/bin/env python3
"""Writes tasks of EleutherAI's lm-evaluation-harness as the multiple-choice files that `hcsmoe_dist evaluate` reads (evaluation.tasks).

    pip install lm_eval
    launch/export_tasks.py --folder tasks                      the eight of the HC-SMoE paper
    launch/export_tasks.py --folder tasks --limit 200 arc_easy piqa

Each task becomes FOLDER/TASK.jsonl; a group such as mmlu becomes one file of all its tasks' questions, so that its accuracy is that of the
questions together, as lm_eval weights it. Context, choices and delimiter are taken from the requests that lm_eval itself would send, examples
before the question included (they are drawn by lm_eval's default seed). The data sets come from where lm_eval takes them: the Hugging Face cache, or
the network.
"""

import argparse
import json
import sys
from pathlib import Path

PAPER = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "mmlu", "openbookqa", "rte", "winogrande"]


FEWSHOT_SEED = 1234  # lm_eval's default of --seed for the examples


def question(task, doc, pairs: list) -> dict:
    """One item, from the (context, continuation) of lm_eval's requests for it."""
    choices_of_task = task.doc_to_choice(doc)
    pairs = pairs[: len(choices_of_task)]  # acc_mutual_info asks more
    delimiter = task.config.target_delimiter
    if not all(continuation.startswith(delimiter) and len(continuation) > len(delimiter) for _, continuation in pairs):
        delimiter = ""
    choices = [continuation[len(delimiter) :] for _, continuation in pairs]
    contexts = [context for context, _ in pairs]
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(answer, str) and answer in choices_of_task:
        answer = choices_of_task.index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        sys.exit(f"export_tasks: {task.config.task}: the answer {answer!r} is not one of the {len(choices)} choices of {doc}")
    item = {"contexts": contexts} if task.multiple_input else {"context": contexts[0]}
    return item | ({"delimiter": delimiter} if delimiter else {}) | {"choices": choices, "answer": answer}


def questions(task, fewshot: int, limit: int | None):
    """The items of a task, in its own order."""
    if task.OUTPUT_TYPE != "multiple_choice":
        sys.exit(f"export_tasks: {task.config.task}: {task.OUTPUT_TYPE} is not multiple choice")
    task.set_config(key="num_fewshot", value=fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(limit=limit)
    pairs, docs = {}, {}
    for request in task.instances:
        docs[request.doc_id] = request.doc
        pairs.setdefault(request.doc_id, []).append(request.args[:2])
    return [question(task, doc, pairs[number]) for number, doc in docs.items()]


def leaves(tasks):
    """The tasks of a group, and of the groups in it."""
    for value in tasks.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def tasks_of(name: str, manager):
    """A task, or those of a group."""
    if hasattr(manager, "load"):  # since lm_eval 0.4.11
        return manager.load(name)["tasks"].values()
    from lm_eval.tasks import get_task_dict

    return leaves(get_task_dict([name], manager))


def export(name: str, manager, folder: Path, fewshot: int, limit: int | None) -> int:
    items = [item for task in tasks_of(name, manager) for item in questions(task, fewshot, limit)]
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=PAPER, help=f"names of lm_eval (default: {' '.join(PAPER)})")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go")
    parser.add_argument("--fewshot", type=int, default=0, help="examples before each question (default: 0, as in the paper)")
    parser.add_argument("--limit", type=int, help="questions of a task at most")
    parser.add_argument("--include-path", help="a folder of further task files of lm_eval")
    arguments = parser.parse_args()
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        sys.exit("export_tasks: lm_eval is not installed: pip install lm_eval")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    manager = TaskManager(include_path=arguments.include_path)
    for name in arguments.tasks:
        print(f"{name}: {export(name, manager, arguments.folder, arguments.fewshot, arguments.limit)} questions", file=sys.stderr)


if __name__ == "__main__":
    main()
