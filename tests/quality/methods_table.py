#!/usr/bin/env python3
"""The table of docs/methods.md: every method at 12, 8 and 6 of the demo model's 16 experts. One calibration pass, a plan for each method
and number of experts, and one evaluation a number of experts, which measures the plans against the original without making checkpoints.

    .deps/python/bin/python tests/quality/methods_table.py            prints the tables (minutes on two cores)
    .deps/python/bin/python tests/quality/methods_table.py --write    also puts them into docs/methods.md

Variants that this version of the program refuses are left out and named at the end.
"""

import argparse
import shutil
import sys
from pathlib import Path

from measuring import DEMO, HEADER, REPOSITORY, Program, caption, configuration, evaluate_plans, row, sets, write_between

SEQUENCES = 64
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


def make_plans(program: Program, work: Path, counts: list, chosen: dict) -> tuple:
    """K -> {variant: plan file}, and what was refused with the reason."""
    plans, refused = {count: {} for count in counts}, {}
    for number, (name, settings) in enumerate(chosen.items()):
        for count in counts:
            method = [] if any(setting.startswith("method=") for setting in settings) else ["method=hc-smoe"]
            result = program.call("plan", *sets([*method, *settings, f"experts={count}"]), refusal_allowed=True)
            if result.returncode != 0:
                refused[f"{name}, K = {count}"] = next(line for line in result.stderr.splitlines() if "error:" in line)
                continue
            plans[count][name] = work / "plans" / f"{number:02}-{count}.json"
            shutil.copy(work / "plan.json", plans[count][name])
    return plans, refused


def tables(results: dict) -> str:
    """Markdown. results: K -> {variant: model}."""
    original = next(iter(results.values()))["original"]
    lines = [caption(original, SEQUENCES)]
    for count, models in results.items():
        lines += ["", f"**{count} of {original['experts']} experts**", ""]
        lines += HEADER
        lines += [row(name, model) for name, model in models.items()]
    return "\n".join(lines) + "\n"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--program", type=Path, default=REPOSITORY / "build" / "hcsmoe_dist")
    arguments.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "methods-table", help="for statistics, plans and results")
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=0, help="a rank; 0: the cores divided by the ranks")
    arguments.add_argument("--experts", type=int, nargs="+", default=[12, 8, 6])
    arguments.add_argument("--documents", type=int, default=400, help="of the validation text")
    arguments.add_argument("--items", type=int, default=200, help="of each task")
    arguments.add_argument("--only", default="", help="variants whose names contain this")
    arguments.add_argument("--write", action="store_true", help="into docs/methods.md")
    chosen = arguments.parse_args()
    chosen.folder = chosen.folder.resolve()

    work = chosen.folder / "work"
    (work / "plans").mkdir(parents=True, exist_ok=True)
    data = DEMO / "data"
    config = configuration(chosen.folder, chosen, DEMO / "model", data / "calibration.jsonl", data / "validation.jsonl", SEQUENCES)
    program = Program(chosen.program, chosen.folder, chosen.ranks, config)
    program.collect()
    variants = {name: settings for name, settings in VARIANTS.items() if chosen.only in name}
    plans, refused = make_plans(program, work, chosen.experts, variants)
    results = {count: evaluate_plans(program, work, plans[count]) for count in chosen.experts if plans[count]}
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not results:
        sys.exit("no variant is left")
    text = tables(results)
    print(text)
    if chosen.write:
        write_between(PAGE, BEGIN, END, text)


if __name__ == "__main__":
    main()
