"""--trace: where the time of every rank goes, of real runs on the demo model."""

import json
from collections import Counter, defaultdict

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
    assert {name for (rank, _), name in names.items() if rank == 1} >= {"main", "writer", "reader"}
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
    names = thread_names(file)
    main = [span for span in spans_of(file) if names[span["pid"], span["tid"]] == "main"]
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


def test_the_reading_thread_has_a_row(traced):
    """Every layer is read there, and before the flow has waited for it."""
    file, _, _ = traced
    names, spans = thread_names(file), spans_of(file)
    for rank in (0, 1):
        rows = {tid: name for (pid, tid), name in names.items() if pid == rank}
        assert len(set(rows.values())) == len(rows)
        of_rank = [span for span in spans if span["pid"] == rank]
        readers = [span for span in of_rank if rows[span["tid"]].startswith("reader")]
        assert {span["cat"] for span in readers} <= {"reading"}
        assert [span for span in of_rank if span["name"] == "weights" and rows[span["tid"]] == "main"] == []
        read = {span["args"]["layer"]: end(span) for span in readers if rows[span["tid"]] == "reader"}
        waited = {span["args"]["layer"]: end(span) for span in of_rank if span["name"] == "wait for the weights"}
        assert set(waited) == {0, 1, 2, 3}
        assert all(moment <= waited[layer] for layer, moment in read.items())
    assert {span["args"]["layer"] for span in spans if span["name"] == "weights"} == {0, 1, 2, 3}


def test_two_streams_of_weights_have_two_readers(tmp_path):
    """Blocks that are fitted on what the compressed layers before them give: the model passes twice at a time."""
    job = demo_job(tmp_path / "output", router="fitted", reconstruction="router", propagate="compressed")
    run_job(tmp_path, 1, job, arguments=["--trace", tmp_path / "trace.json"], timeout=300)
    file = tmp_path / "trace.json"
    names = thread_names(file)
    read = Counter(span["args"]["layer"] for span in spans_of(file)
                   if span["name"] == "weights" and names[span["pid"], span["tid"]] in ("reader", "reader 2"))  # fmt: skip
    assert read == {0: 2, 1: 2, 2: 2, 3: 2}, "one after the other may share a row"
    assert_nested(spans_of(file))


def inside(spans, outer):
    return [span for span in spans if span["pid"] == outer["pid"] and span["tid"] == outer["tid"]
            and outer["ts"] <= span["ts"] and end(span) <= end(outer) + 1e-3 and span is not outer]  # fmt: skip


def test_what_reconstruction_does(traced):
    """Its steps, and in them the work that they are made of."""
    spans = spans_of(traced[0])
    for rank in (0, 1):
        of_rank = [span for span in spans if span["pid"] == rank]
        for layer in range(4):
            whole = [span for span in of_rank if span["name"] == "reconstruction" and span["args"]["layer"] == layer]
            assert len(whole) == 1
            parts = {span["name"] for span in inside(of_rank, whole[0])}
            assert parts >= {"router: members", "down projections", "router: output error of the block", "experts"}
        outers = {name: [span for span in of_rank if span["name"] == name] for name in ("router: members", "down projections", "experts")}
        expected = {
            "router: members": {"router: least squares", "router: cross entropy", "Gram matrix", "factorisation", "solution"},
            "down projections": {"expert", "expert's units", "Gram matrix", "right-hand side", "factorisation", "solution"},
            "experts": {"Gauss-Newton step", "inverses", "Gram matrix"},
        }
        for name, parts in expected.items():
            assert {span["name"] for outer in outers[name] for span in inside(of_rank, outer)} >= parts, name
        grams = [span for span in of_rank if span["name"] == "Gram matrix"]
        assert all({"sum over ranks"} <= {span["name"] for span in inside(of_rank, gram)} for gram in grams[:5])


def test_writing_in_its_parts(traced):
    file, _, _ = traced
    names, spans = thread_names(file), spans_of(file)
    shards = [span for span in spans if span["name"] == "shard"]
    assert len(shards) == 4 and {names[span["pid"], span["tid"]] for span in shards} == {"writer"}
    for shard in shards:
        assert {span["name"] for span in inside(spans, shard)} >= {"HDF5", "to the disk"}


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
