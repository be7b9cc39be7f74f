"""What a user can get wrong: exit code 2 on any number of ranks, within seconds, a message that says what and where, and nothing under the
output's name."""

import json
import os
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
from conftest import ONE_A_FAMILY, job_command, run_job, run_program
from reference import read_tensors
from safetensors.torch import save_file

NAME = ONE_A_FAMILY[0]
RANKS = pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 3])


def refused(folder, ranks, job, words, command=None, sets=(), arguments=()):
    """words: regular expressions that the message must match."""
    result = run_job(folder, ranks, job, command, sets=sets, arguments=arguments, timeout=60, expect=2)
    for word in words:
        assert re.search(word, result.stderr, re.IGNORECASE), f"no {word!r} in:\n{result.stderr}"
    assert result.stderr.count("hcsmoe_dist: error:") == 1, f"one rank speaks for all:\n{result.stderr}"
    assert not (folder / "output").exists()
    return result


WRONG_KEYS = {
    "unknown section": ({"compresion": {"experts": 3}}, ["compresion", "compression"]),
    "unknown key": ({"compression": {"experts": 3, "linkeage": "ward"}}, ["linkeage", "linkage"]),
    "wrong value": ({"compression": {"experts": 3, "linkage": "centroid"}}, ["centroid", "average", "ward"]),
    "wrong type": ({"calibration": {"sequences": "many"}}, ["sequences", "many"]),
    "zero length": ({"calibration": {"length": 0}}, ["length"]),
    "share above one": ({"compression": {"experts": 1.5}}, ["experts", r"1\.5"]),
    "negative count": ({"compression": {"experts": -3}}, ["experts", "-3"]),
    "list for a map": ({"device": ["cpu"]}, ["device"]),
    "cuda without cuda": ({"device": {"type": "cuda"}}, ["cuda"]),
}


@RANKS
@pytest.mark.parametrize("change, words", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_wrong_configuration(case, tmp_path, ranks, change, words):
    refused(tmp_path, ranks, case.job(tmp_path / "output") | change, words)


@RANKS
@pytest.mark.parametrize("override, words", [("compression.linkeage=ward", ["linkeage"]), ("compression.linkage", ["--set|key.*=.*value"]),
                                             ("device.threads=-1", ["threads"])])  # fmt: skip
def test_wrong_override(case, tmp_path, ranks, override, words):
    refused(tmp_path, ranks, case.job(tmp_path / "output"), words, sets=[override])


@RANKS
def test_no_gpu(case, tmp_path, ranks):
    refused(tmp_path, ranks, case.job(tmp_path / "output"), ["device.type is cuda", "built without CUDA|sees no GPU", "hint: .*device.type: cpu"],
            sets=["device.type=cuda"])  # fmt: skip


@RANKS
def test_inspect_refuses_what_a_gpu_cannot_hold(case, tmp_path, ranks):
    sets = ["device.type=cuda", "calibration.sequences=1000000", "device.memory=4GB"]
    result = refused(tmp_path, ranks, case.job(tmp_path / "output"), ["GPU of 4.0 GB is too small", "hint: calibration.sequences of at most"],
                     command="inspect", sets=sets)  # fmt: skip
    most = int(re.search(r"at most (\d+) fit", result.stderr)[1])
    sets[1] = f"calibration.sequences={most}"
    fits = run_job(tmp_path, ranks, case.job(tmp_path / "output"), "inspect", sets=sets)
    assert re.search(r"a GPU of 4.0 GB \(device.memory\)", fits.stdout)


@RANKS
def test_configuration_that_is_not_yaml(tmp_path, ranks):
    refused(tmp_path, ranks, "model: [unclosed\noutput: x\n", [r"config\.yaml", r"\b[12]\b"])


@RANKS
@pytest.mark.parametrize("key", ["model", "output"])
def test_required_key_missing(case, tmp_path, ranks, key):
    job = case.job(tmp_path / "output")
    del job[key]
    refused(tmp_path, ranks, job, [key])


@RANKS
def test_no_calibration_files(case, tmp_path, ranks):
    job = case.job(tmp_path / "output")
    del job["calibration"]["files"]
    refused(tmp_path, ranks, job, [r"calibration|files"])


@RANKS
def test_configuration_file_missing(case, tmp_path, ranks):
    result = run_program(job_command(ranks, tmp_path / "absent.yaml"), timeout=60)
    assert result.returncode == 2 and "absent.yaml" in result.stderr


@RANKS
def test_model_folder_missing(case, tmp_path, ranks):
    refused(tmp_path, ranks, case.job(tmp_path / "output") | {"model": str(tmp_path / "nowhere")}, ["nowhere"])


@RANKS
def test_model_folder_without_weights(broken, tmp_path, ranks):
    model, job = broken
    for file in [*model.glob("*.safetensors"), model / "model.safetensors.index.json"]:
        file.unlink()
    refused(tmp_path, ranks, job, ["safetensors"])


@RANKS
def test_unsupported_architecture(broken, tmp_path, ranks):
    model, job = broken
    config = json.loads((model / "config.json").read_text()) | {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    refused(tmp_path, ranks, job, ["gpt_neox", "mixtral", "qwen2_moe", "deepseek"])


@RANKS
@pytest.mark.parametrize("command", ["run", "inspect"])
def test_fewer_experts_than_the_router_chooses(case, tmp_path, ranks, command):
    words = [r"top-?_?k|num_experts_per_tok", rf"\b{case.top_k}\b"]
    refused(tmp_path, ranks, case.job(tmp_path / "output", experts=case.top_k - 1), words, command)


@RANKS
@pytest.mark.parametrize("command", ["run", "inspect"])
def test_more_experts_than_there_are(case, tmp_path, ranks, command):
    words = [rf"\b{case.experts + 1}\b", rf"\b{case.experts}\b"]
    refused(tmp_path, ranks, case.job(tmp_path / "output", experts=case.experts + 1), words, command)


@RANKS
def test_output_exists(case, tmp_path, ranks):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious.txt").write_text("mine")
    refused(tmp_path, ranks, case.job(tmp_path / "taken"), [r"taken", "exist"])
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["precious.txt"]


def truncate(file):
    os.truncate(file, file.stat().st_size - 7)


def cut_in_the_header(file):
    os.truncate(file, 100)


def empty(file):
    os.truncate(file, 0)


def huge_header(file):
    file.write_bytes(struct.pack("<Q", 1 << 60) + file.read_bytes()[8:])


def header_not_json(file):
    content = bytearray(file.read_bytes())
    content[8:12] = b"\xff\xfe{{"
    file.write_bytes(content)


def range_beyond_the_end(file):
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    tensor = next(entry for name, entry in header.items() if name != "__metadata__")
    tensor["data_offsets"] = [offset + 10**9 for offset in tensor["data_offsets"]]
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


@RANKS
@pytest.mark.parametrize("damage", [truncate, cut_in_the_header, empty, huge_header, header_not_json, range_beyond_the_end])
def test_damaged_safetensors(broken, tmp_path, ranks, damage):
    model, job = broken
    damage(model / "model-00002-of-00007.safetensors")
    refused(tmp_path, ranks, job, [r"model-00002-of-00007\.safetensors"])


@RANKS
def test_file_of_the_index_missing(broken, tmp_path, ranks):
    model, job = broken
    (model / "model-00003-of-00007.safetensors").unlink()
    refused(tmp_path, ranks, job, [r"model-00003-of-00007\.safetensors"])


@RANKS
def test_index_that_points_out_of_the_folder(broken, tmp_path, ranks):
    model, job = broken
    file = model / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("model-00003-of", "../model-00003-of"))
    refused(tmp_path, ranks, job, [r"\.\./model-00003-of"])


@RANKS
def test_config_that_does_not_fit_the_tensors(broken, tmp_path, ranks):
    model, job = broken
    config = json.loads((model / "config.json").read_text()) | {"intermediate_size": 38}
    (model / "config.json").write_text(json.dumps(config))
    refused(tmp_path, ranks, job, [r"model\.layers\.0\.", r"\b38\b", r"\b37\b"])


@RANKS
def test_too_little_calibration_text(case, tmp_path, ranks):
    (tmp_path / "little.txt").write_text("The bright stone carries the queen.\n" * 20)
    calibration = {"files": [str(tmp_path / "little.txt")], "sequences": 64, "length": 512}
    refused(tmp_path, ranks, case.job(tmp_path / "output") | {"calibration": calibration}, [r"tokens", rf"{64 * 512}|32,768|32\.8"])


@RANKS
def test_calibration_file_missing(case, tmp_path, ranks):
    calibration = {"files": ["absent.jsonl"], "sequences": 2, "length": 8}
    refused(tmp_path, ranks, case.job(tmp_path / "output") | {"calibration": calibration}, [r"absent\.jsonl"])


@RANKS
def test_calibration_ids_out_of_the_vocabulary(case, tmp_path, ranks):
    ids = case.array("ids")
    ids[1, 3] = 1024
    np.save(tmp_path / "ids.npy", ids)
    job = case.job(tmp_path / "output")
    job["calibration"]["files"] = [str(tmp_path / "ids.npy")]
    refused(tmp_path, ranks, job, [r"\b1024\b", r"ids\.npy"])


@RANKS
def test_text_without_the_key(case, tmp_path, ranks):
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n{"body": "not fine"}\n')
    calibration = {"files": [str(tmp_path / "c.jsonl")], "sequences": 1, "length": 8}
    refused(tmp_path, ranks, case.job(tmp_path / "output") | {"calibration": calibration}, [r"c\.jsonl.*\b2\b", "text"])


@RANKS
def test_plan_without_statistics(case, tmp_path, ranks):
    refused(tmp_path, ranks, case.job(tmp_path / "output"), [r"layer_0000\.h5|statistics", "collect"], "plan")


@RANKS
def test_apply_without_plan(case, tmp_path, ranks):
    refused(tmp_path, ranks, case.job(tmp_path / "output"), [r"plan"], "apply")


@RANKS
def test_statistics_damaged(case, main_job, tmp_path, ranks):
    shutil.copytree(main_job(NAME)[1], tmp_path / "output.work")
    file = tmp_path / "output.work" / "statistics" / "layer_0001.h5"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    refused(tmp_path, ranks, case.job(tmp_path / "output"), [r"layer_0001\.h5"], "plan")


@RANKS
def test_statistics_of_another_checkpoint(golden, main_job, tmp_path, ranks):
    """plan does not take what another model left in the work folder."""
    shutil.copytree(main_job("mixtral_f32_tied")[1], tmp_path / "output.work")
    refused(tmp_path, ranks, golden(NAME).job(tmp_path / "output"), ["statistics", "checkpoint|collect"], "plan")


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(options) -> the folder of a file system that is soon full."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small tmpfs takes root")
        return disk

    yield mount
    subprocess.run(["umount", "-l", disk], capture_output=True)


@RANKS
@pytest.mark.parametrize("small", ["output", "work"])
def test_disk_too_small(case, tmp_path, small_disk, ranks, small):
    """Told before any work is done."""
    folder = small_disk("size=60k")
    job = case.job((folder if small == "output" else tmp_path) / "output")
    job["work"] = str((folder if small == "work" else tmp_path) / "work")
    refused(tmp_path, ranks, job, [re.escape(str(folder)), "free"])
    assert not (folder / "output").exists() and not list(tmp_path.glob("work/statistics/*"))


@RANKS
@pytest.mark.parametrize("command", ["collect", "run"])
def test_disk_full_of_work(case, tmp_path, small_disk, ranks, command):
    """Room for the tensors of the shards alone: a write fails in the middle, of statistics, of a shard or of the plan."""
    merged = read_tensors(case.folder / "merged")
    shards = sum(tensor.nbytes for name, tensor in merged.items() if ".experts." in name or name.endswith(".gate.weight"))
    folder = small_disk(f"size={shards + 4096 if command == 'run' else 12288}")
    job = case.job(tmp_path / "output") | {"work": str(folder / "work")}
    refused(tmp_path, ranks, job, ["no space left on device", re.escape(str(folder))], command)


@RANKS
def test_disk_full_of_output(case, tmp_path, small_disk, ranks):
    """A file system without room for more files: the assembly fails in the middle."""
    folder = small_disk("size=10m,nr_inodes=6")
    job = case.job(folder / "output") | {"work": str(tmp_path / "work")}
    refused(tmp_path, ranks, job, ["no space left on device", re.escape(str(folder))])
    assert not (folder / "output").exists()


@pytest.mark.parametrize("damage, words", [("short", ["e_score_correction_bias", "shape [11]", "config.json says [12]"]),
                                           ("missing", ["e_score_correction_bias"])])  # fmt: skip
def test_damaged_correction_biases(golden, tmp_path, damage, words):
    case = golden("glm4_moe_f32_groups")
    tensors = read_tensors(case.model)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = tensors.pop(name)
    if damage == "short":
        tensors[name] = bias[:-1].clone()
    shutil.copytree(case.model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    said = run_job(tmp_path, 1, case.job(tmp_path / "output") | {"model": str(tmp_path / "model")}, "inspect", expect=2)
    for word in words:
        assert word in said.stdout + said.stderr
