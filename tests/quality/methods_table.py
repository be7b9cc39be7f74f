#!/usr/bin/env python3
"""The table of docs/methods.md: every method at 12, 8 and 6 of the demo model's 16 experts. One calibration pass, a plan for each method and
number of experts, and one evaluation a number of experts, which measures the plans against the original without making checkpoints.

    .deps/python/bin/python tests/quality/methods_table.py            prints the tables (minutes on two cores)
    .deps/python/bin/python tests/quality/methods_table.py --write    also puts them into docs/methods.md

Variants that this version of the program refuses are left out and named at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "tests" / "data" / "demo"
PAGE = REPOSITORY / "docs" / "methods.md"
BEGIN, END = "<!-- tests/quality/methods_table.py: begin -->", "<!-- tests/quality/methods_table.py: end -->"

# Name in the table -> settings of `compression`. hc-smoe alone: euclidean, average linkage, frequency merge and router.
VARIANTS = {
    "hc-smoe": [],
    **{f"hc-smoe, {linkage}": [f"linkage={linkage}"] for linkage in ("single", "complete", "ward")},
    **{f"hc-smoe, cosine, {linkage}": ["metric=cosine", f"linkage={linkage}"] for linkage in ("average", "complete")},
    "hc-smoe, router_logits": ["feature=router_logits"],
    "hc-smoe, router_logits, cosine": ["feature=router_logits", "metric=cosine"],
    "hc-smoe, expert_output_tokens": ["feature=expert_output_tokens"],
    "hc-smoe, weight": ["feature=weight"],
    "hc-smoe, cka": ["feature=cka"],
    "hc-smoe, weight_cka": ["feature=weight_cka"],
    "hc-smoe, at most 3 a cluster": ["max_cluster_size=3"],
    "hc-smoe, ward, average merge": ["linkage=ward", "merge=average"],
    "hc-smoe, ward, dominant merge": ["linkage=ward", "merge=dominant"],
    "hc-smoe, ward, dominant merge and row": ["linkage=ward", "merge=dominant", "router=representative"],
    "hc-smoe, ward, frequency-aligned": ["linkage=ward", "merge=frequency-aligned"],
    "hc-smoe, ward, fix-dominant": ["linkage=ward", "merge=fix-dominant"],
    "hc-smoe, ward, zipit": ["linkage=ward", "merge=zipit"],
    "hc-smoe, ward, average rows": ["linkage=ward", "router=average"],
    "hc-smoe, ward, representative row": ["linkage=ward", "router=representative"],
    "hc-smoe, aliased rows": ["router=alias"],
    "hc-smoe, ward, aliased rows": ["linkage=ward", "router=alias"],
    "kmeans": ["method=kmeans"],
    "kmeans, random start": ["method=kmeans", "init=random"],
    "fuzzy-cmeans": ["method=fuzzy-cmeans"],
    "m-smoe": ["method=m-smoe"],
    "m-smoe, frequency-aligned": ["method=m-smoe", "merge=frequency-aligned"],
    "dek": ["method=dek"],
    "dek, weight_cka": ["method=dek", "feature=weight_cka"],
    "f-prune": ["method=f-prune"],
    "s-prune": ["method=s-prune"],
    "o-prune": ["method=o-prune"],
    "reap": ["method=reap"],
    "ean": ["method=ean"],
    "random": ["method=random"],
}


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


def make_plans(program: Program, work: Path, counts: list, chosen: dict) -> tuple:
    """K -> {variant: plan file}, and what was refused with the reason."""
    plans, refused = {count: {} for count in counts}, {}
    for number, (name, settings) in enumerate(chosen.items()):
        for count in counts:
            sets = [argument for setting in [*settings, f"experts={count}"] for argument in ("--set", f"compression.{setting}")]
            result = program.call("plan", *sets, refusal_allowed=True)
            if result.returncode != 0:
                refused[f"{name}, K = {count}"] = next(line for line in result.stderr.splitlines() if "error:" in line)
                continue
            plans[count][name] = work / "plans" / f"{number:02}-{count}.json"
            shutil.copy(work / "plan.json", plans[count][name])
    return plans, refused


def measure(program: Program, work: Path, plans: dict) -> dict:
    """{"original": ..., variant: ...} of evaluation.json."""
    program.call("evaluate", *[argument for file in plans.values() for argument in ("--plan", file)])
    models = json.loads((work / "evaluation.json").read_text())["models"]
    by_plan = {model.get("plan"): model for model in models}
    return {"original": by_plan[None]} | {name: by_plan[str(file)] for name, file in plans.items()}


def cell(estimate: dict, digits: int) -> str:
    return f"{estimate['value']:.{digits}f} ± {estimate['standard_error']:.{digits}f}"


def row(name: str, model: dict) -> str:
    (text,) = model["perplexity"]
    perplexity = cell({"value": text["perplexity"], "standard_error": text["perplexity_standard_error"]}, 2)
    compared = [cell(text["kl_divergence"], 3), cell(text["top1_agreement"], 3)] if "kl_divergence" in text else ["0", "1"]
    return "| " + " | ".join([name, perplexity, *compared, cell(model["mean"]["acc"], 3)]) + " |"


def tables(results: dict, config: dict) -> str:
    """Markdown. results: K -> {variant: model}."""
    original = next(iter(results.values()))["original"]
    (text,) = original["perplexity"]
    calibration = config["calibration"]
    lines = [
        f"Calibration: {calibration['sequences']} x {calibration['length']} tokens. Perplexity, KL divergence from the original (nats) and "
        f"top-1 agreement on {text['positions']:,} tokens in windows of {text['length']}; accuracy: mean over "
        f"{len(original['tasks'])} tasks of {sum(task['items'] for task in original['tasks']):,} questions in all; ± one standard error; "
        f"computed in {config['device']['dtype']}.",
    ]
    for count, models in results.items():
        lines += ["", f"**{count} of {original['experts']} experts**", ""]
        lines += ["| | perplexity | KL | top-1 agreement | accuracy |", "|---|---|---|---|---|"]
        lines += [row(name, model) for name, model in models.items()]
    return "\n".join(lines) + "\n"


def write_page(text: str):
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n\n" + text + "\n" + END + rest.split(END)[1])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--program", type=Path, default=REPOSITORY / "build" / "hcsmoe_dist")
    arguments.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "methods-table", help="for statistics, plans and results")
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--experts", type=int, nargs="+", default=[12, 8, 6])
    arguments.add_argument("--documents", type=int, default=400, help="of the validation text")
    arguments.add_argument("--items", type=int, default=200, help="of each task")
    arguments.add_argument("--only", default="", help="variants whose names contain this")
    arguments.add_argument("--write", action="store_true", help="into docs/methods.md")
    chosen = arguments.parse_args()

    work = chosen.folder / "work"
    (work / "plans").mkdir(parents=True, exist_ok=True)
    (chosen.folder / "tasks").mkdir(exist_ok=True)
    first_lines = lambda file, count: "".join(file.read_text().splitlines(keepends=True)[:count])
    (chosen.folder / "validation.jsonl").write_text(first_lines(DEMO / "data" / "validation.jsonl", chosen.documents))
    tasks = [chosen.folder / "tasks" / file.name for file in sorted((DEMO / "tasks").glob("*.jsonl"))]
    for file in tasks:
        file.write_text(first_lines(DEMO / "tasks" / file.name, chosen.items))
    config = {
        "model": str(DEMO / "model"),
        "work": str(work),
        "calibration": {"files": [str(DEMO / "data" / "calibration.jsonl")], "sequences": 64, "length": 256},
        "compression": {"method": "hc-smoe", "experts": 8},
        "device": {"dtype": "float32", "threads": max(1, (os.cpu_count() or 1) // chosen.ranks)},
        "evaluation": {"perplexity": [str(chosen.folder / "validation.jsonl")], "tasks": [str(file) for file in tasks]},
    }
    program = Program(chosen.program, chosen.folder, chosen.ranks, config)
    program.call("collect", *(["--all"] if "--all" in program.help else []))
    variants = {name: settings for name, settings in VARIANTS.items() if chosen.only in name}
    plans, refused = make_plans(program, work, chosen.experts, variants)
    results = {count: measure(program, work, plans[count]) for count in chosen.experts if plans[count]}
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not results:
        sys.exit("no variant is left")
    text = tables(results, config)
    print(text)
    if chosen.write:
        write_page(text)


if __name__ == "__main__":
    main()
