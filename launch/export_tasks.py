#!/usr/bin/env python3
"""Writes tasks of EleutherAI's lm-evaluation-harness as the multiple-choice files that `hcsmoe_dist evaluate` reads (evaluation.tasks).

    pip install lm_eval
    launch/export_tasks.py --folder tasks                      the eight of the HC-SMoE paper
    launch/export_tasks.py --folder tasks --limit 200 arc_easy piqa

Each task becomes FOLDER/TASK.jsonl; a group such as mmlu becomes one file of all its tasks' questions, so that its accuracy is that of the
questions together, as lm_eval weights it. Context, choices and delimiter are taken from the requests that lm_eval itself would send. The data
sets come from where lm_eval takes them: the Hugging Face cache, or the network.
"""

import argparse
import json
import sys
from pathlib import Path

PAPER = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "mmlu", "openbookqa", "rte", "winogrande"]


def question(task, doc, fewshot: int) -> dict:
    """One item, by lm_eval's own requests."""
    requests = task.construct_requests(doc=doc, ctx=task.fewshot_context(doc, num_fewshot=fewshot))
    pairs = [request.args[:2] for request in requests][: len(task.doc_to_choice(doc))]
    delimiter = task.config.target_delimiter
    if not all(continuation.startswith(delimiter) and len(continuation) > len(delimiter) for _, continuation in pairs):
        delimiter = ""
    choices = [continuation[len(delimiter) :] for _, continuation in pairs]
    contexts = [context for context, _ in pairs]
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(answer, str):
        answer = task.doc_to_choice(doc).index(answer)
    item = {"context": contexts[0]} if len(set(contexts)) == 1 else {"contexts": contexts}
    return item | ({"delimiter": delimiter} if delimiter else {}) | {"choices": choices, "answer": answer}


def leaves(tasks):
    """The tasks of a group, and of the groups in it."""
    for value in tasks.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def docs_of(task):
    return task.test_docs() if task.has_test_docs() else task.validation_docs()


def export(name: str, manager, folder: Path, fewshot: int, limit: int | None) -> int:
    from lm_eval.tasks import get_task_dict

    lines = []
    for task in leaves(get_task_dict([name], manager)):
        if task.OUTPUT_TYPE != "multiple_choice":
            raise SystemExit(f"export_tasks: {name}: {task.OUTPUT_TYPE} is not multiple choice")
        for index, doc in enumerate(docs_of(task)):
            if limit is not None and index >= limit:
                break
            lines.append(json.dumps(question(task, doc, fewshot), ensure_ascii=False))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
