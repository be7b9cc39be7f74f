"""--trace: where the time of every rank goes, of real runs on the demo model."""

import json
from collections import defaultdict

import pytest
from checkpoints import DEMO_MODEL
from conftest import run_job

ACTIVITIES = {"reading", "copying", "computing", "reducing", "clustering", "reconstructing", "writing"}
DEMO_TEXT = DEMO_MODEL.parent / "data" / "calibration.jsonl"


def demo_job(output, **compression) -> dict:
    return {
        "model": str(DEMO_MODEL),
        "output": str(output),
        "calibration": {"files": [str(DEMO_TEXT)], "sequences": 16, "length": 64},
        "compression": {"method": "hc-smoe", "experts": 8} | compression,
        "device": {"dtype": "float32"},
    }


def spans_of(file) -> list:
    events = json.loads(file.read_text())["traceEvents"]
    assert not file.with_name(file.name + ".tmp").exists()
    return [event for event in events if event["ph"] == "X"]


def thread_names(file) -> dict:
    events = json.loads(file.read_text())["traceEvents"]
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}


def end(span) -> float:
    return span["ts"] + span["dur"]


def assert_nested(spans):
    """Of two spans of one thread, one holds the other or they share no time."""
    rows = defaultdict(list)
    for span in spans:
        rows[span["pid"], span["tid"]].append(span)
    deepest = 0
    for row in rows.values():
        open_spans = []
        for span in sorted(row, key=lambda span: (span["ts"], -span["dur"])):
            while open_spans and end(open_spans[-1]) <= span["ts"]:
                open_spans.pop()
            if open_spans:
                assert end(span) <= end(open_spans[-1]) + 1e-3, (open_spans[-1], span)
            open_spans.append(span)
            deepest = max(deepest, len(open_spans))
    return deepest


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    job = demo_job(folder / "output", router="fitted", reconstruction="full", rounds=1)
    result = run_job(folder, 2, job, arguments=["--trace", folder / "trace.json"], timeout=300)
    run = json.loads((folder / "output.work" / "run.json").read_text())
    return folder / "trace.json", run, result.seconds


def test_every_activity_of_every_rank(traced):
    file, _, _ = traced
    spans = spans_of(file)
    for rank in (0, 1):
        assert {span["cat"] for span in spans if span["pid"] == rank} == ACTIVITIES
    names = thread_names(file)
    assert {name for (rank, _), name in names.items() if rank == 1} >= {"main", "writer"}
    assert {(span["pid"], span["tid"]) for span in spans} <= set(names)


def test_spans_nest_and_lie_within_the_run(traced):
    file, _, seconds = traced
    spans = spans_of(file)
    assert assert_nested(spans) > 1
    assert min(span["ts"] for span in spans) >= 0 and min(span["dur"] for span in spans) >= 0
    assert max(map(end, spans)) <= 1e6 * seconds


def test_spans_take_the_time_of_the_stages(traced):
    """What run.json says of the sweep and the blocks, by another clock."""
    file, run, _ = traced
    main = [span for span in spans_of(file) if thread_names(file)[span["pid"], span["tid"]] == "main"]
    for rank in (0, 1):
        attention = sum(span["dur"] for span in main if span["pid"] == rank and span["name"] == "attention") / 1e6
        assert attention <= run["attention_seconds"] * 1.02 + 0.01
        busy, last = 0, 0
        for span in sorted((span for span in main if span["pid"] == rank), key=lambda span: (span["ts"], -span["dur"])):
            busy += max(0, end(span) - max(last, span["ts"]))
            last = max(last, end(span))
        assert 0.8 * run["seconds"]["total"] < busy / 1e6, "the outermost spans leave little of the run out"
    layers = {span["args"]["layer"] for span in main if span["name"] == "routed experts"}
    assert layers == {0, 1, 2, 3}


def test_writing_goes_on_beside_the_sweep(traced):
    file, _, _ = traced
    names, spans = thread_names(file), spans_of(file)
    for rank in (0, 1):
        written = [span for span in spans if span["pid"] == rank and names[rank, span["tid"]] == "writer" and span["cat"] == "writing"]
        main = [span for span in spans if span["pid"] == rank and names[rank, span["tid"]] == "main" and "layer" in span.get("args", {})]
        assert {span["args"]["layer"] for span in written if span["name"] == "shard"} == {rank, rank + 2}
        last = max(map(end, main))
        assert any(span["ts"] < last and span["ts"] < end(other) and other["ts"] < end(span) for span in written for other in main)


def test_clocks_of_the_ranks_agree(traced):
    """No rank leaves the all-reduce of a layer before the last one enters it."""
    spans = [span for span in spans_of(traced[0]) if span["name"] == "sums"]
    for layer in range(4):
        of_layer = [span for span in spans if span["args"]["layer"] == layer]
        assert len(of_layer) == 2
        assert min(map(end, of_layer)) > max(span["ts"] for span in of_layer) - 1000  # us


@pytest.mark.parametrize("command, expected", [("collect", {"reading", "computing", "reducing", "writing"}), ("plan", {"clustering"}),
                                               ("apply", {"writing"}), ("evaluate", {"computing"})])  # fmt: skip
def test_every_command_that_runs(traced, tmp_path, command, expected):
    work = traced[0].parent / "output.work"
    job = demo_job(tmp_path / "output")
    if command in ("plan", "apply"):
        job["work"] = str(work)
    if command == "apply":
        run_job(tmp_path, 1, job, "plan")
    if command == "evaluate":
        job["evaluation"] = {"tasks": [str(DEMO_MODEL.parent / "tasks" / "calendar.jsonl")]}
    file = tmp_path / "trace.json"
    run_job(tmp_path, 1, job, command, arguments=["--trace", file])
    assert {span["cat"] for span in spans_of(file)} >= expected


def test_a_run_that_fails_leaves_its_trace(tmp_path):
    job = demo_job(tmp_path / "output")
    job["calibration"]["files"] = [str(tmp_path / "none.jsonl")]
    (tmp_path / "none.jsonl").write_text('{"text": "a"}\n')  # too short
    file = tmp_path / "trace.json"
    run_job(tmp_path, 2, job, arguments=["--trace", file], expect=2)
    spans = spans_of(file)
    assert {span["pid"] for span in spans} == {0, 1} and "calibration text" in {span["name"] for span in spans}


@pytest.mark.parametrize("name", ["no/such/folder/trace.json", "."])
def test_a_file_that_cannot_be_written_is_found_first(tmp_path, name):
    result = run_job(tmp_path, 2, demo_job(tmp_path / "output"), arguments=["--trace", tmp_path / name], expect=2)
    assert "--trace" in result.stderr and "calibration" not in result.stderr
    assert result.stderr.count("error") == 1
    assert not (tmp_path / "output.work").exists()
