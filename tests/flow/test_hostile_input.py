"""Files that an attacker or an accident brings, and files that change while they are read: the run ends with the bytes that it always gives,
or with a message and a code that is not zero; never with a wrong result, and never without end."""

import gzip
import json
import re
import shutil

import pytest
from conftest import BUILD, ONE_A_FAMILY, digests, job_command, job_digests, need, run_job, run_program, write_config, xxh3_128
from reference import read_tensors
from safetensors.torch import save_file

NAME = ONE_A_FAMILY[0]
RANKS = pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
SECONDS = 15  # from an error of one rank to the end of all


def refused(folder, job, words, command=None, ranks=1):
    result = run_job(folder, ranks, job, command, timeout=60, expect=2)
    for word in words:
        assert re.search(word, result.stderr, re.IGNORECASE), f"no {word!r} in:\n{result.stderr}"
    assert result.stderr.count("hcsmoe_dist: error:") == 1, f"one rank speaks for all:\n{result.stderr}"
    assert len(result.stderr) < 20_000 and not (folder / "output").exists()
    return result


# What users' files may hold


def test_only_pickles(broken, tmp_path):
    """A pickle that would leave a mark if anybody loaded it."""
    model, job = broken
    for file in [*model.glob("*.safetensors"), model / "model.safetensors.index.json"]:
        file.unlink()
    mark = tmp_path / "executed"
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    refused(tmp_path, job, [r"pytorch_model\.bin", "pickle", "never read", r"safe_serialization=True"], "inspect")
    (model / "model.safetensors").write_bytes(b"\x80\x02" + (model / "pytorch_model.bin").read_bytes())
    refused(tmp_path, job, [r"model\.safetensors", "pickle"], "inspect")
    assert not mark.exists()


def test_a_pickle_beside_the_model_is_left_alone(broken, tmp_path):
    model, job = broken
    (model / "training_args.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    said = run_job(tmp_path, 1, job)
    assert "training_args.bin: weights of the original" in said.stdout + said.stderr
    assert not (tmp_path / "output" / "training_args.bin").exists()


INDEX = {
    "above": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "absolute weights": "/tmp/model-00003-of-00007.safetensors",
    "folder": "..",
    "hidden zero": "model-00003-of-00007.safetensors\0.safetensors",
    "too long": "m" * 5000 + ".safetensors",
    "steers the terminal": "\x1b[2J.safetensors",
}


@pytest.mark.parametrize("name", INDEX.values(), ids=INDEX)
def test_index_names(broken, tmp_path, name):
    model, job = broken
    file = model / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    file.write_text(json.dumps(index))
    result = refused(tmp_path, job, [r"model\.safetensors\.index\.json|is missing"], "inspect")
    assert "\x1b" not in result.stderr and "\0" not in result.stderr


CONFIG = {
    "NaN": ('"rms_norm_eps": NaN', ["config.json", "invalid JSON"]),
    "1e400": ('"rms_norm_eps": 1e400', ["config.json", "invalid JSON"]),
    "1e30 layers": ('"num_hidden_layers": 1e30', ["num_hidden_layers", "whole number"]),
    "layers": ('"num_hidden_layers": 9223372036854775807', ["num_hidden_layers", "10000"]),
    "no layers": ('"num_hidden_layers": 0', ["num_hidden_layers"]),
    "negative": ('"hidden_size": -8', ["hidden_size", "-8"]),
    "beyond 64 bits": ('"hidden_size": 99999999999999999999999', ["hidden_size"]),
    "experts": ('"num_local_experts": 65536', ["65536|experts"]),
    "no experts": ('"num_local_experts": 0', ["num_local_experts"]),
    "text": ('"vocab_size": "many"', ["vocab_size", "many"]),
    "heads": ('"num_attention_heads": 65535', ["head"]),
    "list": ('"rope_scaling": [1, 2]', ["rope_scaling"]),
    "escape": ('"model_type": "\\u001b[31mred"', ["not supported"]),
}


@pytest.mark.parametrize("member, words", CONFIG.values(), ids=CONFIG)
def test_model_configuration(broken, tmp_path, member, words):
    model, job = broken
    key = member.split('"')[1]
    config = {name: value for name, value in json.loads((model / "config.json").read_text()).items() if name != key}
    (model / "config.json").write_text(json.dumps(config)[:-1] + ", " + member + "}")
    assert "\x1b" not in refused(tmp_path, job, words, "inspect").stderr


def test_model_configuration_nested_without_end(broken, tmp_path):
    model, job = broken
    (model / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    refused(tmp_path, job, [r"config\.json:1:\d+", "nested deeper"], "inspect")


YAML = {
    "nested": ("[" * 10_000, [r"config\.yaml"]),
    "mappings": ("{a: " * 10_000, [r"config\.yaml"]),
    "anchors": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", ["anchors"]),
    "tag": ("model: !!python/object/apply:os.system [id]\n", ["tags"]),
    "integer": ("calibration:\n  sequences: 99999999999999999999999999\n", [r"config\.yaml:2", "sequences"]),
    "product": ("calibration:\n  sequences: 2147483648\n  length: 16777216\n", ["tokens"]),
    "infinite": ("compression:\n  experts: .inf\n", ["experts"]),
    "not a number": ("compression:\n  experts: .nan\n", ["experts"]),
    "zero byte": ("model: a\0b\n", [r"config\.yaml"]),
    "long": ("# " + "x" * 1_000_000 + "\n", ["bytes"]),
}


@pytest.mark.parametrize("text, words", YAML.values(), ids=YAML)
def test_configuration(tmp_path, text, words):
    refused(tmp_path, text, words)


def test_gzip_bomb(case, tmp_path):
    """3 MB that unpack to 3 GB. The program may not take the memory."""
    block = gzip.compress(b"\0" * (1 << 30), 9)
    (tmp_path / "bomb.jsonl.gz").write_bytes(block * 3)
    job = case.job(tmp_path / "output")
    job["calibration"]["files"] = [str(tmp_path / "bomb.jsonl.gz")]
    file = write_config(tmp_path, job)
    limited = ["bash", "-c", 'ulimit -v 6000000; exec "$@"', "bash", *job_command(1, file)]
    result = run_program(limited, timeout=60)
    assert result.returncode == 2 and re.search(r"bomb\.jsonl\.gz.*(MiB|more than)", result.stderr), result.stderr


def test_links_out_of_the_model_are_not_copied(broken, tmp_path):
    """A folder from a stranger may hold links; what they lead to must not be handed on with the output."""
    model, job = broken
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "notes.txt").write_text("shared notes")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_text("blob")
    for name, target in {"id_rsa": "../secret", "README.txt": "../secret", "notes.txt": "../notes.txt", "vocab.json": "../blobs/0123",
                         "inside.md": "config.json"}.items():  # fmt: skip
        (model / name).symlink_to(target)
    said = run_job(tmp_path, 1, job)
    names = {file.name for file in (tmp_path / "output").iterdir()}
    assert {"notes.txt", "vocab.json", "inside.md"} <= names and not names & {"id_rsa", "README.txt"}
    assert (said.stdout + said.stderr).count("a link out of the folder") == 2


def clusters(plan):
    return plan["layers"][0]["clusters"]


PLAN = {
    "format": (lambda plan: plan.update(format="hcsmoe-plan/9"), ["format"]),
    "expert twice": (lambda plan: clusters(plan)[0]["members"].append(clusters(plan)[1]["members"][0]), ["expert|values"]),
    "expert that is not there": (lambda plan: clusters(plan)[0]["members"].__setitem__(0, 10**9), ["expert"]),
    "negative weight": (lambda plan: clusters(plan)[0]["weights"].__setitem__(0, -1), ["weights"]),
    "huge layer": (lambda plan: plan["layers"][-1].update(layer=10**6), ["layer"]),
    "experts": (lambda plan: plan["layers"][0].update(experts=10**6), ["experts"]),
    "a cluster less": (lambda plan: clusters(plan).pop(), ["expert"]),
    "tree": (lambda plan: plan["layers"][0]["tree"].append([0, 1, 2.0, 99]), ["tree"]),
}  # fmt: skip


@pytest.mark.parametrize("edit, words", PLAN.values(), ids=PLAN)
def test_plan_edited_wrongly(case, main_job, tmp_path, edit, words):
    plan = json.loads((main_job(NAME)[1] / "plan.json").read_text())
    edit(plan)
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    file = write_config(tmp_path, case.job(tmp_path / "output"))
    result = run_program(job_command(1, file, "apply", arguments=["--plan", tmp_path / "edited.json"]), timeout=60)
    assert result.returncode == 2 and "edited.json" in result.stderr, result.stdout + result.stderr
    for word in words:
        assert re.search(word, result.stderr), result.stderr


SHARD_DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "not ours": lambda content: b"\x89HDF\r\n\x1a\n" + bytes(4096),
    "a bit": lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :],
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE.values(), ids=SHARD_DAMAGE)
@pytest.mark.parametrize("part", ["statistics", "shards"])
def test_damaged_work_is_done_again(case, main_job, tmp_path, part, damage):
    """Or named, where its bytes are only read when the output is written."""
    output, work = main_job(NAME)
    shutil.copytree(work, tmp_path / "output.work")
    file = tmp_path / "output.work" / part / "layer_0001.h5"
    file.write_bytes(damage(file.read_bytes()))
    result = run_program(job_command(1, write_config(tmp_path, case.job(tmp_path / "output"))), timeout=60)
    if result.returncode == 0:
        assert job_digests(tmp_path / "output", tmp_path / "output.work") == job_digests(output, work)
    else:
        assert result.returncode == 2 and "layer_0001.h5" in result.stderr and not (tmp_path / "output").exists()


# Files that change or fail while they are read


def with_faults(tmp_path, ranks, job, **faults):
    environment = {"LD_PRELOAD": str(need(BUILD / "faulty_io.so"))}
    environment |= {f"FAULTY_IO_{key.upper()}": str(value) for key, value in faults.items()}
    return run_program(job_command(ranks, write_config(tmp_path, job)), timeout=60, environment=environment)


@RANKS
@pytest.mark.parametrize("what", ["short", "eintr"])
@pytest.mark.parametrize("when, path", [("read", "model-"), ("read", ".h5"), ("read", ".json"), ("read", "ids.npy"), ("write", "output")])
def test_reads_and_writes_in_part(case, main_job, tmp_path, ranks, what, when, path):
    result = with_faults(tmp_path, ranks, case.job(tmp_path / "output"), path=path, when=when, what=what)
    assert result.returncode == 0, result.stdout + result.stderr
    assert job_digests(tmp_path / "output", tmp_path / "output.work") == job_digests(*main_job(NAME))


FAILING = {
    "fingerprint": dict(path="model-00002", when="read", what="EIO"),
    "configuration": dict(path="model/config.json", when="read", what="EIO"),
    "calibration": dict(path="ids.npy", when="read", what="EIO"),
    "weights": dict(path="model-00004", when="populate", what="EIO"),
    "shards": dict(path="shards/layer_0001", when="read", what="EIO"),
    "statistics written": dict(path="statistics/layer_0001", when="write", what="EIO"),
    "shard written": dict(path="shards/layer_0001", when="write", what="ENOSPC"),
    "output written": dict(path="output.partial/model-00002", when="write", what="EIO", count=2),
    "output full": dict(path="output.partial/model-00002", when="write", what="ENOSPC", count=3),
}


@RANKS
@pytest.mark.parametrize("fault", FAILING.values(), ids=FAILING)
def test_a_failing_disk(case, tmp_path, ranks, fault):
    result = with_faults(tmp_path, ranks, case.job(tmp_path / "output"), **fault)
    assert result.returncode == 2 and result.seconds < SECONDS, result.stdout + result.stderr
    assert fault["path"].split("/")[-1] in result.stderr
    assert re.search("input/output error|no space left|cannot be read", result.stderr, re.IGNORECASE), result.stderr
    assert not (tmp_path / "output").exists()


CHANGING = {
    "cut before it is read": dict(path="model-00002", when="populate", what="cut"),
    "cut while it is used": dict(path="statistics/layer_0000", when="write", what="cut"),
    "written to while it is used": dict(path="statistics/layer_0000", when="write", what="touch"),
    "written to before the assembly": dict(path="shards/layer_0001", when="write", what="touch"),
    "replaced while it is used": dict(path="statistics/layer_0000", when="write", what="replace"),
    "replaced before the assembly": dict(path="output.partial/model-00001", when="write", what="replace"),
    "replaced at the end": dict(path="output.partial/config.json", when="write", what="replace"),
}


@RANKS
@pytest.mark.parametrize("fault", CHANGING.values(), ids=CHANGING)
def test_a_checkpoint_that_changes(broken, tmp_path, ranks, fault):
    model, job = broken
    victim = model / "model-00005-of-00007.safetensors"
    other = {name: tensor + 1 for name, tensor in read_tensors(model).items() if name in json_header(victim)}
    save_file(other, tmp_path / "replacement")
    result = with_faults(tmp_path, ranks, job, victim=victim, replacement=tmp_path / "replacement", **fault)
    assert result.returncode == 2 and result.seconds < SECONDS, result.stdout + result.stderr
    assert victim.name in result.stderr, result.stderr
    assert re.search("now has|was replaced|was written to|cannot be read any more|not those that were read", result.stderr), result.stderr
    assert not (tmp_path / "output").exists()


def json_header(file):
    content = file.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


# Checksums


def test_checksums(case, main_job, tmp_path):
    output, work = main_job(NAME)
    checksums = json.loads((work / "run.json").read_text())["checksums"]
    assert checksums["algorithm"] == "xxh3-128"
    files = {file.name: xxh3_128(file.read_bytes()) for file in output.iterdir() if file.name not in ("checksums.xxh128", "report.html")}
    assert checksums["output"] == files
    lines = [line.split("  ") for line in (output / "checksums.xxh128").read_text().splitlines()]
    assert lines == [[files[name], name] for name in sorted(files)]

    run_job(tmp_path, 2, case.job(tmp_path / "output"))
    again = json.loads((tmp_path / "output.work" / "run.json").read_text())["checksums"]
    assert again == checksums, "ranks make no difference"
    layers = sum(tensor.nbytes for name, tensor in read_tensors(case.model).items() if name.startswith("model.layers."))
    assert sum(file["bytes"] for file in checksums["read"].values()) == layers
    assert set(checksums["read"]) <= {file.name for file in case.model.glob("*.safetensors")}


def test_checksums_of_what_was_read_follow_the_bytes(broken, main_job, tmp_path):
    model, job = broken
    file = model / "model-00004-of-00007.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    run_job(tmp_path, 1, job, "collect")
    read = json.loads((tmp_path / "output.work" / "run.json").read_text())["checksums"]["read"]
    before = json.loads((main_job(NAME)[1] / "run.json").read_text())["checksums"]["read"]
    assert [name for name in before if before[name] != read[name]] == [file.name]


def test_an_output_that_is_compressed_again_has_its_own_checksums(case, main_job, tmp_path):
    output, _ = main_job(NAME)
    run_job(tmp_path, 1, case.job(tmp_path / "output") | {"model": str(output)})
    lines = (tmp_path / "output" / "checksums.xxh128").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == {name for name in digests(tmp_path / "output") if name != "checksums.xxh128"}
