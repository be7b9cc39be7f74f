"""What people and machines see: --json of every command, the tables of inspect, completion in real shells, and no escape codes."""

import json
import os
import pty
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from conftest import MPI_ENVIRONMENT, ONE_A_FAMILY, PROGRAM, need, run_job, run_program, write_config
from safetensors.torch import load_file, save_file

FIRST = ONE_A_FAMILY[1]


def document(result) -> dict:
    """Stdout, which must be one JSON document; no escape code anywhere."""
    assert "\x1b" not in result.stdout + result.stderr and "\r" not in result.stderr
    return json.loads(result.stdout)


def test_json_of_every_command(golden, tmp_path):
    case, output, work = golden(FIRST), tmp_path / "output", tmp_path / "output.work"
    text = golden(FIRST).model.parent / "text.jsonl"
    text.write_text('{"text": "Now Sam has the red coat and Ruth the white drum."}\n' * 20)
    job = case.job(output) | {"evaluation": {"perplexity": [str(text)], "length": 32}}
    call = lambda command, ranks=2, **more: document(run_job(tmp_path, ranks, job, command, arguments=["--json"], **more))  # noqa: E731

    assert call("collect")["command"] == "collect"
    again = call("collect")
    assert again["command"] == "collect" and again["experts"] == case.experts and "seconds" not in again, "nothing to do"
    plan = call("plan")
    assert plan["format"] == "hcsmoe-plan-summary/1" and plan["plan"] == str(work / "plan.json")
    made = json.loads((work / "plan.json").read_text())
    for layer, expected in zip(plan["layers"], made["layers"], strict=True):
        sizes = [len(cluster["members"]) for cluster in expected["clusters"]]
        assert [layer["layer"], layer["clusters"], layer["largest"], layer["alone"]] == [
            expected["layer"], len(sizes), max(sizes), sizes.count(1),
        ]  # fmt: skip
    applied = call("apply")
    assert applied == json.loads((work / "run.json").read_text()) and applied["command"] == "apply"
    assert call("apply") == applied, "an earlier run made it"
    assert call("report") == {"format": "hcsmoe-report/1", "report": str(output / "report.html"), "plan": str(work / "plan.json")}
    assert call("evaluate") == json.loads((work / "evaluation.json").read_text())
    shutil.rmtree(output)
    shutil.rmtree(work)
    ran = call(None)
    assert ran["command"] == "run" and ran["plan"] == applied["plan"] and ran["evaluation"]["models"][1]["experts"] == case.kept


@pytest.mark.parametrize("ranks", [1, 2])
def test_errors_are_json_too(golden, tmp_path, ranks):
    job = golden(FIRST).job(tmp_path / "output")
    wrong = run_job(tmp_path, ranks, job, "run", sets=["compression.linkge=ward"], arguments=["--json"], expect=2)
    said = document(wrong)
    assert said["exit_code"] == 2 and "nearest: compression.linkage" in said["error"] and said["error"].splitlines()[0] in wrong.stderr
    result = run_program([need(PROGRAM), "--json", "--fast", "x.yaml"], timeout=60)
    assert result.returncode == 2 and "--fast" in document(result)["error"]


def gini(counts: np.ndarray) -> float:
    return float(np.abs(counts[:, None] - counts[None, :]).sum() / (2 * len(counts) * counts.sum()))


def test_inspect_shows_usage_and_sizes(golden, main_job, tmp_path):
    case, work = golden(FIRST), main_job(FIRST)[1]
    config = write_config(tmp_path, case.job(tmp_path / "output") | {"work": str(work)})
    told = document(run_program([need(PROGRAM), "inspect", config, "--json"], timeout=60))
    assert told["model"]["experts"] == case.experts and told["output"]["experts"] == case.kept
    sizes = {entry["experts"]: entry["bytes"] for entry in told["sizes"]}
    made = sum(tensor.nbytes for file in main_job(FIRST)[0].glob("*.safetensors") for tensor in load_file(file).values())
    assert sizes[case.experts] == told["model"]["bytes"] and sizes[case.kept] == made and min(sizes) >= case.top_k
    assert told["disk"]["free_for_output"] > 0
    files = sorted((work / "statistics").glob("layer_*.h5"))
    assert len(told["usage"]) == len(files) > 0
    for entry, file in zip(told["usage"], files, strict=True):
        with h5py.File(file) as statistics:
            counts, sums = statistics["routed_count"][:].astype(float), statistics["output_sum"][:]
        assert entry["unused"] == (counts == 0).sum()
        assert entry["busiest"]["share"] == pytest.approx(counts.max() / counts.sum())
        assert entry["least"] == {"expert": int(counts.argmin()), "share": pytest.approx(counts.min() / counts.sum())}
        assert entry["gini"] == pytest.approx(gini(counts))
        norms = np.linalg.norm(sums, axis=1)
        distances = np.linalg.norm(sums[:, None] - sums[None], axis=2) / np.maximum(norms[:, None], norms[None])
        distances[np.diag_indices(len(counts))] = np.inf
        assert entry["nearest"]["distance"] == pytest.approx(distances.min())
        assert entry["nearest"]["experts"] == sorted(np.unravel_index(distances.argmin(), distances.shape))
        assert entry["alike"] == (distances.min(axis=1) < 0.01).sum()
    text = run_program([need(PROGRAM), "inspect", config], timeout=60).stdout
    assert "usage of experts" in text and "Gini" in text and "<- compression.experts" in text


def test_inspect_finds_equal_experts(golden, tmp_path):
    case, model = golden(FIRST), tmp_path / "model"
    shutil.copytree(case.model, model)
    changed = 0
    for file in model.glob("*.safetensors"):
        tensors = load_file(file)
        for name in list(tensors):
            if ".experts.0." in name and name.replace(".experts.0.", ".experts.2.") in tensors:
                tensors[name.replace(".experts.0.", ".experts.2.")] = tensors[name].clone()
                changed += 1
        save_file(tensors, file, metadata={"format": "pt"})
    assert changed > 0 and changed % 3 == 0
    for folder, groups in ((model, [[0, 2]]), (case.model, [])):
        config = write_config(tmp_path, case.job(tmp_path / "output") | {"model": str(folder)})
        told = document(run_program([need(PROGRAM), "inspect", config, "--json", "--duplicates"], timeout=60))
        assert told["duplicates"] and all(layer["groups"] == groups for layer in told["duplicates"])
        assert told["usage"] == []


def on_a_terminal(command: list, environment: dict) -> str:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=follower, stderr=follower, stdin=subprocess.DEVNULL,
        env=os.environ | MPI_ENVIRONMENT | environment,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert process.wait(120) == 0, shown.decode()
    return shown.decode()


def test_no_escape_codes_on_a_terminal(golden, tmp_path):
    for number, environment in enumerate(({"TERM": "xterm-256color"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"})):
        folder = tmp_path / str(number)
        config = write_config(folder, golden(FIRST).job(folder / "output"))
        shown = on_a_terminal([need(PROGRAM), config, "--set", "device.threads=1"], environment)
        assert "\x1b" not in shown and ("\r" in shown.replace("\r\n", "\n")) == (environment["TERM"] != "dumb")


def completed(line: str, folder) -> list:
    """What bash offers at the end of a line."""
    script = f"""
        source <({need(PROGRAM)} --completion bash)
        COMP_LINE={json.dumps(line)}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDBREAKS=' =:'
        _hcsmoe_dist
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, env=os.environ | MPI_ENVIRONMENT)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return result.stdout.split()


def test_completion_in_bash(tmp_path):
    for name in ("config.yaml", "other.json", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "configs").mkdir()
    assert completed("hcsmoe_dist ins", tmp_path) == ["inspect"]
    assert sorted(completed("hcsmoe_dist plan co", tmp_path)) == ["config.yaml", "configs/"]
    assert "notes.txt" not in completed("hcsmoe_dist plan ", tmp_path)
    assert completed("hcsmoe_dist config.yaml --set compression.li", tmp_path) == ["compression.linkage="]
    assert completed("hcsmoe_dist config.yaml --set compression.linkage=", tmp_path) == ["single", "complete", "average", "ward"]
    assert completed("hcsmoe_dist config.yaml --set device.type=cu", tmp_path) == ["cuda"]
    assert completed("hcsmoe_dist config.yaml --set calibration.files=no", tmp_path) == ["notes.txt"]
    assert completed("hcsmoe_dist collect config.yaml --a", tmp_path) == ["--all"]
    assert completed("hcsmoe_dist plan config.yaml --a", tmp_path) == []
    assert completed("hcsmoe_dist apply config.yaml --plan ot", tmp_path) == ["other.json"]
    assert completed("hcsmoe_dist inspect config.yaml --machine re", tmp_path) == ["read=", "reduce="]
    assert completed("hcsmoe_dist help eva", tmp_path) == ["evaluate"]
    assert completed("hcsmoe_dist --completion f", tmp_path) == ["fish"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_scripts_are_read(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(run_program([need(PROGRAM), "--completion", shell], timeout=60).stdout)
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True).stderr == ""
    if shell == "fish":
        offered = lambda line: subprocess.run(  # noqa: E731
            ["fish", "-c", f"source {script}; complete -C {json.dumps(line)}"], capture_output=True, text=True, cwd=tmp_path
        ).stdout
        assert "compression.linkage=ward" in offered("hcsmoe_dist config.yaml --set compression.linkage=w")
        assert offered("hcsmoe_dist insp").startswith("inspect")
