"""A run that was ended, by whatever, and started again goes on where it was, and its result is the same bytes; what is not the same job is
refused."""

import json
import os
import re
import shutil
import signal

import h5py
import pytest
from checkpoints import DEMO_MODEL
from conftest import digests, job_digests, model_digests, run_job
from interrupted import Run, saved

pytestmark = pytest.mark.slow

VALIDATION = DEMO_MODEL.parent / "data" / "validation.jsonl"
CALIBRATION = DEMO_MODEL.parent / "data" / "calibration.jsonl"


def job(folder, sequences=24, **compression) -> dict:
    return {
        "model": str(DEMO_MODEL),
        "output": str(folder / "output"),
        "calibration": {"files": [str(CALIBRATION)], "sequences": sequences, "length": 128},
        "compression": {"method": "hc-smoe", "experts": 8, "reconstruction": "full"} | compression,
        "device": {"dtype": "float32"},
    }


RECIPES = {
    "one stream": {},
    "two streams": {"propagate": "compressed"},
    "auto": {"method": "auto"},
    "aligned": {"merge": "frequency-aligned", "reconstruction": "none"},
    "merged": {"reconstruction": "none"},
}


def recipe(name: str) -> dict:
    changes = dict(RECIPES[name])
    if name == "auto":
        changes |= {"reconstruction": "full", "rounds": 1}
    return changes


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """uninterrupted(recipe) -> digests of all that a run in one go leaves."""
    finished = {}

    def run(name="two streams"):
        if name not in finished:
            folder = tmp_path_factory.mktemp("in_one_go")
            run_job(folder, 2, job(folder, **recipe(name)))
            assert not (folder / "output.work" / "resume").exists(), "nothing is left to go on from"
            finished[name] = job_digests(folder / "output", folder / "output.work")
        return finished[name]

    return run


def layers_gone_on_after(text: str) -> list[int]:
    return [int(layer) for layer in re.findall(r"going on after layer (\d+)", text)]


def interrupted(folder, config, ranks=2, after=1, signal_number=signal.SIGKILL, whom=-1, command=None, work="output.work", **options) -> Run:
    """Ends a run once the streams after a layer are saved. whom: a rank, or None: what started them."""
    run = Run(folder, ranks, config, command, **options)
    assert run.wait_until(saved(folder / work, after, ranks)), f"it ended before:\n{run.said()}"
    os.kill(run.process.pid if whom is None else run.ranks()[whom], signal_number)
    run.code = run.end()
    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_rank(uninterrupted, tmp_path, name):
    """The others end within seconds, and another number of ranks goes on: at most one layer is done twice."""
    run = interrupted(tmp_path, job(tmp_path, **recipe(name)), ranks=2, after=1)
    assert run.code not in (0, 2) and run.seconds < 15, run.said()
    assert "signal 9" in run.said()
    assert not (tmp_path / "output").exists() and not (tmp_path / "output.work" / "plan.json").exists()
    again = run_job(tmp_path, 3, job(tmp_path, **recipe(name)))
    assert layers_gone_on_after(again.stderr) and layers_gone_on_after(again.stderr)[0] >= 1
    assert job_digests(tmp_path / "output", tmp_path / "output.work") == uninterrupted(name)
    assert not (tmp_path / "output.work" / "resume").exists()


def test_killed_again_and_again(uninterrupted, tmp_path):
    for after, ranks, whom in [(0, 1, 0), (1, 3, 0), (2, 2, 1)]:
        run = interrupted(tmp_path, job(tmp_path, propagate="compressed"), ranks, after, whom=whom)
        gone_on = layers_gone_on_after(run.said())  # on a busy machine a run comes further before it is killed
        assert run.code != 0 and (gone_on == [] if after == 0 else len(gone_on) == 1 and gone_on[0] >= after - 1)
    again = run_job(tmp_path, 2, job(tmp_path, propagate="compressed"))
    assert layers_gone_on_after(again.stderr) == [2]
    assert job_digests(tmp_path / "output", tmp_path / "output.work") == uninterrupted()
    layers = [layer["layer"] for layer in json.loads((tmp_path / "output.work" / "run.json").read_text())["reconstruction"]]
    assert layers == sorted(set(layers)) and len(layers) == 4, "run.json tells of the layers of all runs"


@pytest.mark.parametrize("signal_number, whom, ranks", [(signal.SIGUSR1, None, 2), (signal.SIGTERM, None, 2), (signal.SIGUSR1, 1, 2), (signal.SIGTERM, 0, 1)],
                         ids=["USR1 to mpirun", "TERM to mpirun", "USR1 to one rank", "TERM without mpirun"])  # fmt: skip
def test_asked_to_stop(uninterrupted, tmp_path, signal_number, whom, ranks):
    run = interrupted(tmp_path, job(tmp_path, propagate="compressed"), ranks, 0, signal_number, whom, launcher=ranks > 1)
    assert run.seconds < 20
    saved_after = re.search(r"asked to stop: saved after layer (\d+)", run.said())
    assert saved_after or "asked to stop in the middle of a layer" in run.said(), run.said()  # the latter where a layer takes more than 10 s
    if not (signal_number == signal.SIGTERM and whom is None):  # mpirun itself ends by the signal then
        assert run.code == 75, run.said()
    again = run_job(tmp_path, 2, job(tmp_path, propagate="compressed"))
    assert layers_gone_on_after(again.stderr)
    if saved_after:
        assert layers_gone_on_after(again.stderr) == [int(saved_after[1])]
    assert job_digests(tmp_path / "output", tmp_path / "output.work") == uninterrupted()


def test_asked_to_stop_before_the_first_layer(tmp_path):
    """While the calibration text is read, or wherever else: it leaves at the first boundary."""
    run = Run(tmp_path, 2, job(tmp_path))
    assert run.wait_until(lambda: (tmp_path / "output.work" / "lock").exists())
    os.kill(run.process.pid, signal.SIGUSR1)
    assert run.end() == 75 and run.seconds < 20, run.said()
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("command", ["collect", "apply"])
def test_other_commands_go_on_too(uninterrupted, tmp_path, command):
    config = job(tmp_path, propagate="compressed")
    if command == "apply":
        whole = tmp_path / "whole"
        run_job(whole, 2, job(whole, propagate="compressed"))
        (tmp_path / "output.work").mkdir()
        shutil.copytree(whole / "output.work" / "statistics", tmp_path / "output.work" / "statistics")
        shutil.copy(whole / "output.work" / "plan.json", tmp_path / "output.work")
    run = interrupted(tmp_path, config, after=1, command=command)
    assert run.code != 0
    again = run_job(tmp_path, 3, config, command)
    assert layers_gone_on_after(again.stderr) and layers_gone_on_after(again.stderr)[0] >= 1
    if command == "collect":
        run_job(tmp_path, 2, config)
    assert job_digests(tmp_path / "output", tmp_path / "output.work") == uninterrupted()


@pytest.mark.parametrize("name", ["deepseek_bf16", "qwen2_moe_f32_sparse_step"])
def test_dense_layers_and_ranks_without_tokens(golden, tmp_path, name):
    """The first layer is dense, or every second; two sequences on three ranks leave one without tokens."""
    case = golden(name)
    config = case.job(tmp_path / "output", method="hc-smoe", reconstruction="full", propagate="compressed")
    config["calibration"] |= {"sequences": 2}
    run_job(tmp_path, 1, config)
    expected = job_digests(tmp_path / "output", tmp_path / "output.work")
    gone_on = []
    for after in (0, 1, 1):
        shutil.rmtree(tmp_path / "output")
        shutil.rmtree(tmp_path / "output.work")
        run = Run(tmp_path, 3, config)
        run.wait_until(saved(tmp_path / "output.work", after, 2))
        run.kill()
        gone_on += layers_gone_on_after(run_job(tmp_path, 2, config).stderr)
        assert job_digests(tmp_path / "output", tmp_path / "output.work") == expected
    assert gone_on, "all three had ended before they were killed, or saved nothing"


def test_killed_while_the_output_is_written(uninterrupted, tmp_path):
    config = job(tmp_path, propagate="compressed") | {"output_shard_size": "200KB"}
    run = Run(tmp_path, 2, config)
    records = tmp_path / "output.work" / "resume"
    happened = run.wait_until(lambda: len(list(records.glob("*.written"))) >= 3)
    run.kill()
    assert happened and not (tmp_path / "output").exists()
    written = sorted(file.name.removesuffix(".written") for file in records.glob("*.written"))
    damage(tmp_path / "output.partial" / written.pop())
    times = {name: (tmp_path / "output.partial" / name).stat().st_mtime_ns for name in written}
    again = run_job(tmp_path, 3, config)
    assert {name: (tmp_path / "output" / name).stat().st_mtime_ns for name in written} == times
    assert (f"{len(written)} of " in again.stderr and "had been written before" in again.stderr) == bool(written)
    assert "sweep" not in json.loads((tmp_path / "output.work" / "run.json").read_text())["seconds"], again.stderr
    assert len(json.loads((tmp_path / "output.work" / "run.json").read_text())["reconstruction"]) == 4
    whole = tmp_path / "whole"
    run_job(whole, 1, job(whole, propagate="compressed") | {"output_shard_size": "200KB"})
    assert digests(tmp_path / "output") == digests(whole / "output")


def test_killed_while_the_output_is_measured(tmp_path):
    config = job(tmp_path) | {"evaluation": {"perplexity": [str(VALIDATION)]}}
    run = Run(tmp_path, 2, config)
    assert run.wait_until(lambda: (tmp_path / "output").exists() and "evaluation" in run.said())
    run.kill()
    assert not (tmp_path / "output.work" / "evaluation.json").exists()
    made = model_digests(tmp_path / "output")
    again = run_job(tmp_path, 2, config)
    assert "going on behind it" in again.stderr and "sweep:" not in again.stderr
    assert model_digests(tmp_path / "output") == made
    summary = json.loads((tmp_path / "output.work" / "run.json").read_text())
    assert len(summary["reconstruction"]) == 4 and summary["evaluation"]["models"][1]["perplexity"][0]["perplexity"] > 1
    done = run_job(tmp_path, 2, config)
    assert "nothing to do" in done.stderr and model_digests(tmp_path / "output") == made
    other = run_job(tmp_path, 1, config, sets=["compression.experts=10"], expect=2)
    assert "compression.experts: 8 then, 10 now" in other.stderr and model_digests(tmp_path / "output") == made


@pytest.fixture(scope="session")
def half_done(tmp_path_factory):
    """A folder in which a run was killed after layer 1."""
    folder = tmp_path_factory.mktemp("half_done")
    shutil.copytree(DEMO_MODEL, folder / "model")
    config = job(folder, propagate="compressed") | {"model": "model", "output": "output"}
    run = interrupted(folder, config, after=1)
    assert run.code != 0
    return folder


@pytest.fixture
def unfinished(half_done, tmp_path):
    """A copy of it, and its configuration."""
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    return tmp_path, json.loads((tmp_path / "config.yaml").read_text())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("propagate, streams", [("compressed", 2), ("original", 1)])
def test_inspect_counts_what_is_saved(unfinished, propagate, streams, ranks):
    folder, config = unfinished
    saved_bytes = {"original": 0, "compressed": 0}
    for file in (folder / "output.work" / "resume").glob("streams_0001_*.h5"):
        with h5py.File(file) as part:
            for name in saved_bytes:
                saved_bytes[name] += part[name].size * part[name].dtype.itemsize
    assert saved_bytes["original"] == saved_bytes["compressed"] > 0
    config["compression"]["propagate"] = propagate
    result = run_job(folder, ranks, config, "inspect", arguments=["--json"])
    told = json.loads(result.stdout)
    assert told["disk"]["streams"] == 2 * streams * saved_bytes["original"], "of the last two layers"
    assert told["a_rank"]["saved_streams"] == streams * saved_bytes["original"] / ranks
    text = run_job(folder, ranks, config, "inspect").stdout
    assert "of residual streams" in text and "streams that are saved" in text


def changed_weights(folder, config):
    file = next((folder / "model").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def changed_text(folder, config):
    lines = CALIBRATION.read_text().splitlines()
    (folder / "text.jsonl").write_text("\n".join([*lines[1:], lines[0]][: len(lines) - 3]))
    config["calibration"]["files"] = ["text.jsonl"]


def changed(section, key, value):
    def change(folder, config):
        config[section][key] = value

    return change


CHANGES = {
    "weights": (changed_weights, ["the checkpoint .* has changed"]),
    "text": (changed_text, ["the calibration tokens .* have? changed|the calibration tokens .* has changed"]),
    "sequences": (changed("calibration", "sequences", 20), ["calibration tokens"]),
    "experts": (changed("compression", "experts", 6), [r"compression.experts: 8 then, 6 now"]),
    "linkage": (changed("compression", "linkage", "ward"), [r'compression.linkage: "average" then, "ward" now']),
    "type of computation": (changed("device", "dtype", "bfloat16"), [r'device.dtype.*"float32" then, "bfloat16" now']),
}


@pytest.mark.parametrize("change, words", CHANGES.values(), ids=CHANGES)
def test_what_is_not_the_same_job_is_refused(unfinished, change, words):
    folder, config = unfinished
    change(folder, config)

    def work():
        found = digests(folder / "output.work")
        return {name: digest for name, digest in found.items() if name != "lock" and not name.startswith("log/")}

    before = work()
    assert any(name.startswith("resume/") for name in before) and "calibration.npy" in before
    result = run_job(folder, 2, config, expect=2)
    for word in words + ["unfinished run", "--fresh"]:
        assert re.search(word, result.stderr), f"no {word!r} in:\n{result.stderr}"
    assert work() == before, "nothing is lost"


def test_fresh_starts_over(unfinished, uninterrupted):
    folder, config = unfinished
    result = run_job(folder, 2, config, arguments=["--fresh"])
    assert not layers_gone_on_after(result.stderr)
    assert job_digests(folder / "output", folder / "output.work") == uninterrupted()


def test_threads_and_ranks_may_change(unfinished, uninterrupted):
    folder, config = unfinished
    result = run_job(folder, 1, config | {"save_every": 3600}, threads=2)
    assert layers_gone_on_after(result.stderr)
    assert job_digests(folder / "output", folder / "output.work") == uninterrupted()


def damage(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize("how", [damage, lambda file: os.truncate(file, file.stat().st_size // 2), lambda file: file.unlink()],
                         ids=["damaged", "cut", "gone"])  # fmt: skip
def test_streams_that_cannot_be_used(unfinished, uninterrupted, how):
    """One of the last layer: it goes on from the layer before; and from the beginning where that has none either."""
    folder, config = unfinished
    files = sorted((folder / "output.work" / "resume").glob("streams_*.h5"))
    last = int(files[-1].name.split("_")[1])
    whole = {int(file.name.split("_")[1]) for file in files} - {last}
    how(files[-1])
    result = run_job(folder, 2, config)
    assert layers_gone_on_after(result.stderr) == [max(whole)] if whole else not layers_gone_on_after(result.stderr)
    assert job_digests(folder / "output", folder / "output.work") == uninterrupted()


def test_collect_needs_no_output(tmp_path):
    config = job(tmp_path, reconstruction="none") | {"work": "work"}
    del config["output"]
    assert interrupted(tmp_path, config, after=0, command="collect", work="work").code != 0
    assert layers_gone_on_after(run_job(tmp_path, 1, config, "collect").stderr)
    whole = tmp_path / "whole"
    run_job(whole, 1, config | {"model": str(DEMO_MODEL)}, "collect")
    assert digests(tmp_path / "work" / "statistics") == digests(whole / "work" / "statistics")


def test_collect_after_a_run_that_is_done(tmp_path):
    """The work folder serves on."""
    config = job(tmp_path, reconstruction="none")
    run_job(tmp_path, 2, config)
    made = digests(tmp_path / "output")
    run_job(tmp_path, 1, config, "collect", arguments=["--all"])
    again = run_job(tmp_path, 1, config, expect=2)
    assert "exists" in again.stderr and digests(tmp_path / "output") == made


def test_a_shard_that_has_vanished(unfinished):
    folder, config = unfinished
    (folder / "output.work" / "shards" / "layer_0000.h5").unlink()
    result = run_job(folder, 2, config, expect=2)
    assert re.search(r"layer_0000\.h5: missing or damaged", result.stderr) and "--fresh" in result.stderr


def test_a_record_that_is_not_ours(unfinished):
    folder, config = unfinished
    for content in ("{", "[]", '{"format": "hcsmoe-job/1"}', '{"format": "hcsmoe-job/1", "state": "asleep", "output": "", "job": {}}'):
        (folder / "output.work" / "job.json").write_text(content)
        assert "job.json" in run_job(folder, 2, config, expect=2).stderr


def test_one_run_at_a_time(tmp_path):
    config = job(tmp_path, sequences=160)
    run = Run(tmp_path, 2, config)
    assert run.wait_until(saved(tmp_path / "output.work", 0, 1))
    processes = run.ranks()
    other = run_job(tmp_path, 1, config, expect=2)
    assert "in use by another run" in other.stderr and any(f"process {process}" in other.stderr for process in processes)
    run.kill()
    assert (tmp_path / "output.work" / "lock").read_text() != "", "it died without cleaning up"
    run_job(tmp_path, 1, config)
    assert (tmp_path / "output.work" / "lock").read_text() == ""


def test_statistics_of_other_text_are_not_replaced_unasked(tmp_path):
    config = job(tmp_path, reconstruction="none")
    run_job(tmp_path, 1, config, "collect")
    before = digests(tmp_path / "output.work" / "statistics")
    result = run_job(tmp_path, 1, config, sets=["calibration.sequences=20"], expect=2)
    assert "other calibration tokens" in result.stderr and "--fresh" in result.stderr
    assert digests(tmp_path / "output.work" / "statistics") == before
    run_job(tmp_path, 1, config, sets=["calibration.sequences=20"], arguments=["--fresh"])
    assert digests(tmp_path / "output.work" / "statistics") != before
