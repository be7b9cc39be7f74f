"""What the tables of tests/quality share: the program on a work folder, the texts and tasks of a measurement, and rows of Markdown."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "tests" / "data" / "demo"
LENGTH, DTYPE = 256, "float32"
HEADER = ["| | perplexity | KL | top-1 agreement | accuracy |", "|---|---|---|---|---|"]


class Program:
    """The program on one work folder. Every call uses the same configuration."""

    def __init__(self, file: Path, folder: Path, ranks: int, config: dict):
        self.file, self.ranks, self.config = file, ranks, folder / "config.yaml"
        self.config.write_text(json.dumps(config, indent=2))
        self.help = subprocess.run([file, "--help"], capture_output=True, text=True, check=True).stdout

    def call(self, command: str, *arguments, refusal_allowed=False) -> subprocess.CompletedProcess:
        mpirun = ["mpirun", "-np", str(1 if command == "plan" else self.ranks)]
        result = subprocess.run([*mpirun, self.file, command, self.config, *arguments], capture_output=True, text=True, check=False)
        if result.returncode != 0 and not (refusal_allowed and result.returncode == 2):
            sys.exit(f"{command} failed:\n{result.stdout}{result.stderr}")
        return result

    def collect(self):
        self.call("collect", *(["--all"] if "--all" in self.help else []))


def sets(settings: list) -> list:
    return [argument for setting in settings for argument in ("--set", f"compression.{setting}")]


def first_lines(source: Path, count: int, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:count]))
    return target


def configuration(folder: Path, chosen, model: Path, calibration: Path, validation: Path, sequences: int) -> dict:
    """chosen: the flags `documents` and `items`, which limit the texts, `ranks` and `threads`. The tasks are the demo's."""
    text = first_lines(validation, chosen.documents, folder / "validation.jsonl")
    tasks = [first_lines(file, chosen.items, folder / "tasks" / file.name) for file in sorted((DEMO / "tasks").glob("*.jsonl"))]
    return {
        "model": str(model),
        "work": str(folder / "work"),
        "calibration": {"files": [str(calibration)], "sequences": sequences, "length": LENGTH},
        "compression": {"experts": 8},
        "device": {"dtype": DTYPE, "threads": chosen.threads or max(1, (os.cpu_count() or 1) // chosen.ranks)},
        "evaluation": {"perplexity": [str(text)], "tasks": [str(file) for file in tasks]},
    }


def evaluate_plans(program: Program, work: Path, plans: dict) -> dict:
    """{"original": ..., name: ...} of evaluation.json. plans: name -> file."""
    program.call("evaluate", *[argument for file in plans.values() for argument in ("--plan", file)])
    models = json.loads((work / "evaluation.json").read_text())["models"]
    by_plan = {model.get("plan"): model for model in models}
    return {"original": by_plan[None]} | {name: by_plan[str(file)] for name, file in plans.items()}


def cell(estimate: dict, digits: int) -> str:
    return f"{estimate['value']:.{digits}f} ± {estimate['standard_error']:.{digits}f}"


def row(name: str, model: dict, kl_digits=3) -> str:
    (text,) = model["perplexity"]
    perplexity = cell({"value": text["perplexity"], "standard_error": text["perplexity_standard_error"]}, 2)
    compared = [cell(text["kl_divergence"], kl_digits), cell(text["top1_agreement"], 3)] if "kl_divergence" in text else ["0", "1"]
    return "| " + " | ".join([name, perplexity, *compared, cell(model["mean"]["acc"], 3)]) + " |"


def caption(original: dict, sequences: int) -> str:
    (text,) = original["perplexity"]
    return (
        f"Calibration: {sequences} x {LENGTH} tokens. Perplexity, KL divergence from the original (nats) and "
        f"top-1 agreement on {text['positions']:,} tokens in windows of {text['length']}; accuracy: mean over "
        f"{len(original['tasks'])} tasks of {sum(task['items'] for task in original['tasks']):,} questions in all; ± one standard error; "
        f"computed in {DTYPE}."
    )


def write_between(page: Path, begin: str, end: str, text: str):
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + "\n\n" + text + "\n" + end + rest.split(end)[1])
