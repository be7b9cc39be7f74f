#!/usr/bin/env python3
"""The tables of docs/quality.md: published methods as they are, and reconstruction step by step up to the default, on exported checkpoints.

    .deps/python/bin/python tests/quality/quality_table.py                           the demo model (half an hour on two cores)
    .deps/python/bin/python tests/quality/quality_table.py --table calibration --experts 8 --sequences 8 64 256
    .deps/python/bin/python tests/quality/quality_table.py --table other --model DIR --calibration FILE --validation FILE --experts 6 4 3

Each measurement is a line of FOLDER/results.jsonl, and what stands there is not measured again: a run that was broken off continues. --write
puts the table into docs/quality.md, between the marks of its name.
"""

import argparse
import json
import shutil
from pathlib import Path

from measuring import DEMO, HEADER, LENGTH, REPOSITORY, Program, caption, configuration, evaluate_plans, row, sets, write_between

PAGE = REPOSITORY / "docs" / "quality.md"

# Name in the table -> settings of `compression`. Those with * cannot be exported: no stock checkpoint holds two router rows for one expert.
PUBLISHED = {
    "hc-smoe": ["method=hc-smoe"],
    "hc-smoe, aliased rows *": ["method=hc-smoe", "router=alias"],
    **{method: [f"method={method}"] for method in ("m-smoe", "dek", "f-prune", "s-prune", "o-prune", "reap", "ean")},
}
WARD = ["method=hc-smoe", "linkage=ward", "router=fitted"]
ALIGNED = [*WARD, "merge=frequency-aligned"]
FULL = ["reconstruction=full", "rounds=3"]
STEPS = {
    "ward, fitted rows": [*WARD, "merge=frequency", "reconstruction=none"],
    "... aligned merge": [*ALIGNED, "reconstruction=none"],
    "... reconstruction: router": [*ALIGNED, "reconstruction=router", "propagate=original"],
    "... full, 1 round": [*ALIGNED, "reconstruction=full", "propagate=original", "rounds=1"],
    "... full, 3 rounds": [*ALIGNED, *FULL, "propagate=original"],
    "... and propagate: compressed": [*ALIGNED, *FULL, "propagate=compressed"],
    "reap, full, 3 rounds, compressed": ["method=reap", *FULL, "propagate=compressed"],
    "**auto (default)**": [],
}
NO_RECONSTRUCTION, PROPAGATED, AUTO = "... aligned merge", "... and propagate: compressed", "**auto (default)**"
ORIGINAL, COLLECT = "original", "collect"


class Results:
    """Lines of a file: {"sequences", "experts", "name", "seconds", "model"}. What stands in it is not measured again."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.found = {self.key(line): line for line in map(json.loads, lines)}

    @staticmethod
    def key(line: dict) -> tuple:
        return line["sequences"], line["experts"], line["name"]

    def __contains__(self, key: tuple) -> bool:
        return key in self.found

    def __getitem__(self, key: tuple) -> dict:
        return self.found[key]

    def add(self, sequences: int, experts: int, name: str, seconds, model: dict):
        line = {"sequences": sequences, "experts": experts, "name": name, "seconds": seconds, "model": model}
        self.found[self.key(line)] = line
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(f"{sequences} sequences, {experts} experts, {row(name, model, 4) if model else name}", flush=True)


class Bed:
    """One model, calibrated with a number of sequences: a folder with the statistics, which are collected once."""

    def __init__(self, chosen, sequences: int, results: Results):
        folder = chosen.folder / str(sequences)
        folder.mkdir(parents=True, exist_ok=True)
        self.work, self.sequences, self.results = folder / "work", sequences, results
        config = configuration(folder, chosen, chosen.model, chosen.calibration, chosen.validation, sequences)
        self.program = Program(chosen.program, folder, chosen.ranks, config)
        if not (self.work / "statistics").exists():
            self.program.collect()
        if (sequences, 0, COLLECT) not in results:
            results.add(sequences, 0, COLLECT, json.loads((self.work / "run.json").read_text())["seconds"]["sweep"], {})

    def measure_plans(self, experts: int, variants: dict):
        """Without checkpoints: the model reads each plan as it would be exported, all in one call."""
        variants = {name: settings for name, settings in variants.items() if (self.sequences, experts, name) not in self.results}
        plans = {}
        for number, (name, settings) in enumerate(variants.items()):
            self.program.call("plan", *sets([*settings, f"experts={experts}"]))
            plans[name] = self.work / f"plan-{number}.json"
            shutil.copy(self.work / "plan.json", plans[name])
        if plans:
            for name, model in evaluate_plans(self.program, self.work, plans).items():
                if (self.sequences, experts, name) not in self.results:
                    self.results.add(self.sequences, experts, name, None, model)

    def measure_export(self, experts: int, name: str, settings: list):
        if (self.sequences, experts, name) in self.results:
            return
        output = self.work.parent / "output"
        shutil.rmtree(output, ignore_errors=True)
        self.program.call("run", *sets([*settings, f"experts={experts}"]), "--set", f"output={output}")
        run = json.loads((self.work / "run.json").read_text())
        original, exported = run["evaluation"]["models"]
        if (self.sequences, experts, ORIGINAL) not in self.results:
            self.results.add(self.sequences, experts, ORIGINAL, None, original)
        self.results.add(self.sequences, experts, name, run["seconds"]["sweep"], exported)


def main_table(chosen, results: Results) -> str:
    (sequences,) = chosen.sequences
    lines = []
    for experts in sorted(chosen.experts, reverse=True):
        names = [name for name in (ORIGINAL, *PUBLISHED, *STEPS) if (sequences, experts, name) in results]
        if not names:
            continue
        original = results[sequences, experts, ORIGINAL]["model"]
        lines = lines or [caption(original, sequences)]
        lines += ["", f"**{experts} of {original['experts']} experts**", "", *HEADER]
        lines += [row(name, results[sequences, experts, name]["model"], 4) for name in names]
    return "\n".join(lines) + "\n"


def calibration_table(chosen, results: Results) -> str:
    lines = ["| tokens | experts " + HEADER[0], "|---|---" + HEADER[1]]
    for experts in sorted(chosen.experts, reverse=True):
        for sequences in sorted(chosen.sequences):
            for name in (NO_RECONSTRUCTION, PROPAGATED, AUTO):
                if (sequences, experts, name) in results:
                    model = results[sequences, experts, name]["model"]
                    lines.append(f"| {sequences * LENGTH:,} | {experts} " + row(CALIBRATION_NAMES[name], model, 4))
    return "\n".join(lines) + "\n"


CALIBRATION_NAMES = {NO_RECONSTRUCTION: "ward, aligned merge, fitted rows", PROPAGATED: "the same, full, 3 rounds, compressed", AUTO: AUTO}


def seconds_of(chosen, results: Results) -> str:
    """Of the sweep through the layers, for docs/quality.md's paragraph on cost."""
    lines = []
    for sequences in chosen.sequences:
        if (sequences, 0, COLLECT) in results:
            lines.append(f"{sequences} sequences: every statistic {results[sequences, 0, COLLECT]['seconds']:.1f} s")
        for (found, experts, name), line in sorted(results.found.items()):
            if found == sequences and experts in chosen.experts and line["seconds"] is not None:
                lines.append(f"    {experts} experts, {name}: {line['seconds']:.1f} s")
    return "\n".join(lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--table", choices=["demo", "calibration", "other"], default="demo")
    arguments.add_argument("--program", type=Path, default=REPOSITORY / "build" / "hcsmoe_dist")
    arguments.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "quality-table", help="for statistics and results")
    arguments.add_argument("--model", type=Path, default=DEMO / "model")
    arguments.add_argument("--calibration", type=Path, default=DEMO / "data" / "calibration.jsonl")
    arguments.add_argument("--validation", type=Path, default=DEMO / "data" / "validation.jsonl")
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=0, help="a rank; 0: the cores divided by the ranks")
    arguments.add_argument("--experts", type=int, nargs="+", default=[8, 12, 6, 4, 10], help="in the order in which they are measured")
    arguments.add_argument("--sequences", type=int, nargs="+", default=[64], help="of 256 tokens; several only with --table calibration")
    arguments.add_argument("--documents", type=int, default=400, help="of the validation text")
    arguments.add_argument("--items", type=int, default=200, help="of each task")
    arguments.add_argument("--only", default="", help="of our steps, those whose names contain this")
    arguments.add_argument("--measured", action="store_true", help="measure nothing, show what results.jsonl holds")
    arguments.add_argument("--write", action="store_true", help="into docs/quality.md")
    chosen = arguments.parse_args()
    if chosen.table != "calibration" and len(chosen.sequences) != 1:
        arguments.error("--sequences takes one number with this table")

    chosen.folder = chosen.folder.resolve()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    results = Results(chosen.folder / "results.jsonl")
    beds = {} if chosen.measured else {sequences: Bed(chosen, sequences, results) for sequences in chosen.sequences}
    for experts in chosen.experts:
        for bed in beds.values():
            if chosen.table != "calibration":
                bed.measure_plans(experts, PUBLISHED)
            for name in STEPS if chosen.table != "calibration" else CALIBRATION_NAMES:
                if chosen.only in name:
                    bed.measure_export(experts, name, STEPS[name])
    text = calibration_table(chosen, results) if chosen.table == "calibration" else main_table(chosen, results)
    print(text)
    print(seconds_of(chosen, results))
    if chosen.write:
        mark = f"<!-- tests/quality/quality_table.py, {chosen.table}: "
        write_between(PAGE, mark + "begin -->", mark + "end -->", text)


if __name__ == "__main__":
    main()
