"""verify: sound outputs of every family pass, and every kind of damage is named."""

import json
import re
import shutil
import struct

import pytest
from checkpoints import DEMO_MODEL
from conftest import ONE_A_FAMILY, PROGRAM, digests, job_command, need, run_job, run_program, xxh3_128

NAME = ONE_A_FAMILY[0]
TRAINING = DEMO_MODEL.parent / "data" / "calibration.jsonl"


def verify(target, ranks=1, expect=0, arguments=(), sets=()):
    """What `verify TARGET` says; one rank goes without mpirun."""
    command = job_command(ranks, target, "verify", sets, arguments=arguments)
    result = run_program(command[3:] if ranks == 1 else command, timeout=120)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stderr


def deviations(target, **how):
    text = verify(target, expect=2, **how)
    count = re.search(r"error: .*: (\d+) deviations?\n", text)
    return [line.strip() for line in text[count.end() :].splitlines()[: min(int(count[1]), 21)]]


def list_again(output):
    """Checksums of what the folder holds now, as a forger would make them."""
    names = sorted(file.name for file in output.iterdir() if file.name not in ("checksums.xxh128", "report.html"))
    (output / "checksums.xxh128").write_text("".join(f"{xxh3_128((output / name).read_bytes())}  {name}\n" for name in names))


def tensors_of(output) -> dict:
    """name -> (file, begin, end) of every tensor's bytes in the folder."""
    places = {}
    for file in sorted(output.glob("*.safetensors")):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        for name, entry in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                places[name] = (file, 8 + length + begin, 8 + length + end)
    return places


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.fixture
def output(main_job, tmp_path):
    """A copy of a finished job that may be damaged, with its work folder."""
    made, work = main_job(NAME)
    shutil.copytree(made, tmp_path / "output")
    shutil.copytree(work, tmp_path / "output.work")
    return tmp_path / "output"


@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("ranks", [1, 3])
def test_sound_outputs(golden, main_job, name, ranks):
    case, (made, _) = golden(name), main_job(name)
    before = digests(made)
    text = verify(made, ranks)
    listed = len((made / "checksums.xxh128").read_text().splitlines())
    assert f"files: {listed} of {listed} as listed" in text
    layers = len(json.loads((made / "hcsmoe_plan.json").read_text())["layers"])
    assert f"{layers} router" in text and re.search(rf"and {layers * case.kept} of {layers * case.kept} experts made again.*equal bit by bit", text)
    assert "holds what its plan makes of" in text
    tensors, untouched = re.search(r"tensors: (\d+) of (\d+) have", text), re.search(r"untouched tensors: (\d+) of (\d+)", text)
    assert tensors[1] == tensors[2] == str(len(tensors_of(made))) and untouched[1] == untouched[2] and int(untouched[1]) > 0
    assert digests(made) == before, "nothing is written"


def test_a_configuration_names_the_output(golden, output, tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps(golden(NAME).job(output)))
    assert "holds what its plan makes of" in verify(tmp_path / "config.yaml", 2)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": str(golden(NAME).model)}))
    assert "the key 'output' is missing" in verify(tmp_path / "config.yaml", expect=2)


def test_an_output_that_stands_alone(golden, output, tmp_path):
    moved = tmp_path / "elsewhere"
    output.rename(moved)
    assert "--original FOLDER" in verify(moved, expect=2)
    assert "holds what its plan makes of" in verify(moved, arguments=["--original", golden(NAME).model])
    assert "no folder" in verify(moved, expect=2, arguments=["--original", tmp_path / "nowhere"])
    assert "no configuration file" in verify(tmp_path / "nowhere", expect=2)


def test_a_draw_of_experts(output):
    text = verify(output, arguments=["--sample", 1])
    layers = len(json.loads((output / "hcsmoe_plan.json").read_text())["layers"])
    assert f"{layers} of " in text and "that were not drawn" in text
    assert "--sample" in verify(output, expect=2, arguments=["--sample", 0])


def test_a_draw_finds_some_damage_and_other_seeds_find_the_rest(output):
    places = tensors_of(output)
    damaged = [name for name in places if ".experts.0." in name]
    for name in damaged:
        flip(places[name][0], places[name][1])
    list_again(output)
    everything = deviations(output)
    assert len(everything) == len(damaged)
    found, sizes = set(), set()
    for seed in range(8):
        command = job_command(1, output, "verify", [f"compression.seed={seed}"], arguments=["--sample", 1])
        lines = [line.strip() for line in run_program(command[3:], timeout=120).stderr.splitlines()]
        drawn = {line for line in lines if "is not what the plan makes" in line}
        found |= drawn
        sizes.add(len(drawn))
    assert found == set(everything) and min(sizes) < len(damaged)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_flipped_byte(output, ranks):
    name, (file, begin, _) = next((name, place) for name, place in tensors_of(output).items() if "norm" in name)
    flip(file, begin + 1)
    found = deviations(output, ranks=ranks)
    assert len(found) == 2
    assert found[0].startswith(f'file "{file.name}" has changed')
    assert found[1] == f'tensor "{name}" differs from the original\'s from byte 1 on'


@pytest.mark.parametrize("ranks", [1, 3])
def test_swapped_tensors_with_the_right_checksums(output, ranks):
    places = tensors_of(output)
    experts = sorted(name for name in places if ".experts.0.w1" in name or ".experts.1.w1" in name)[:2]
    contents = [places[name][0].read_bytes()[places[name][1] : places[name][2]] for name in experts]
    for name, content in zip(experts, reversed(contents)):
        file, begin, end = places[name]
        whole = file.read_bytes()
        file.write_bytes(whole[:begin] + content + whole[end:])
    list_again(output)
    found = deviations(output, ranks=ranks)
    assert [line.split('"')[1] for line in found] == experts and all("is not what the plan makes of the original" in line for line in found)


def test_a_router_that_was_changed(output):
    name, (file, begin, _) = next((name, place) for name, place in tensors_of(output).items() if name.endswith("gate.weight"))
    flip(file, begin)
    list_again(output)
    assert [line.split('"')[1] for line in deviations(output)] == [name]


def test_another_type_in_a_header(output):
    name, (file, _, _) = next((name, place) for name, place in tensors_of(output).items() if "q_proj" in name)
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length]
    at = header.index(b'"%s"' % name.encode())
    changed = header[:at] + header[at:].replace(b'"dtype":"BF16"', b'"dtype":"F16" ', 1)
    file.write_bytes(content[:8] + changed + content[8 + length :])
    list_again(output)
    (found,) = deviations(output)
    assert re.match(rf'tensor "{re.escape(name)}" is F16 \[.*\], expected BF16 \[', found)


def test_a_header_that_is_broken(output):
    file = next(output.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-2])
    found = deviations(output, ranks=2)
    assert found[0].startswith(f'file "{file.name}" has changed') and file.name in found[1]


def test_an_edited_config(output):
    config = json.loads((output / "config.json").read_text())
    config["num_local_experts"] += 1
    config["rope_theta"] = 5
    del config["vocab_size"]
    config["added"] = {"below": True}
    (output / "config.json").write_text(json.dumps(config))
    found = "\n".join(deviations(output))
    for expected in ('"num_local_experts" is 4, expected 3', '"rope_theta" is 5', '"vocab_size" is missing', '"added.below" is not in'):
        assert expected in found
    assert 'file "config.json" has changed' in found


def test_files_too_many_and_missing(output):
    (output / "extra.bin").write_text("x")
    (output / ".gitattributes").write_text("left by a repository")
    (output / "tokenizer_config.json").unlink()
    text = verify(output, expect=2)
    assert 'file "extra.bin" is not listed' in text and 'file "tokenizer_config.json" is missing' in text
    assert 'file "tokenizer_config.json" is not there: the original\'s was to be carried over' in text
    assert "not checked: .gitattributes" in text
    file = next(output.glob("*.safetensors"))
    file.unlink()
    assert file.name in "\n".join(deviations(output, ranks=3))


def test_a_carried_file_that_was_changed(output):
    with (output / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    list_again(output)
    assert deviations(output) == ['file "tokenizer_config.json" differs from the original\'s']


def test_an_edited_plan(output):
    file = output / "hcsmoe_plan.json"
    plan = json.loads(file.read_text())
    cluster = next(c for c in plan["layers"][0]["clusters"] if len(c["members"]) > 1)
    cluster["weights"] = [1.0] + [0.0] * (len(cluster["members"]) - 1)
    file.write_text(json.dumps(plan))
    assert 'file "hcsmoe_plan.json" has changed' in "\n".join(deviations(output))
    list_again(output)
    found = deviations(output, ranks=2)
    assert found[0].startswith("hcsmoe_plan.json is not the plan that README.md tells of")
    assert any("is not what the plan makes of the original" in line for line in found[1:])
    file.write_text("{")
    assert "hcsmoe_plan.json" in "\n".join(deviations(output)[1:]), "no plan at all"
    file.unlink()
    assert "no plan at" in "\n".join(deviations(output))
    assert "1 deviation" in verify(output, expect=2, arguments=["--plan", output.with_name("output.work") / "plan.json"])


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_changed_original(golden, output, tmp_path, ranks):
    original = tmp_path / "original"
    shutil.copytree(golden(NAME).model, original)
    name, (file, begin, _) = next((name, place) for name, place in tensors_of(original).items() if "o_proj" in name)
    flip(file, begin)
    found = deviations(output, ranks=ranks, arguments=["--original", original])
    assert f'tensor "{name}" differs from the original\'s from byte 0 on' in found


def test_another_original(golden, output):
    text = verify(output, expect=2, arguments=["--original", golden(ONE_A_FAMILY[1]).model])
    assert "the plan is of another model" in text or "is no MoE layer" in text or "in the plan" in text


def test_at_most_twenty_deviations_are_named(output):
    places = tensors_of(output)
    for name in list(places)[:40]:
        flip(places[name][0], places[name][1])
    found = deviations(output)
    assert len(found) == 21 and re.fullmatch(r"and \d+ more", found[-1])


@pytest.mark.parametrize("ranks", [1, 3])
def test_blocks_that_were_fitted(golden, tmp_path, ranks):
    """What tokens were needed for is compared with the shards; without them it is said plainly that nobody looked."""
    run_job(tmp_path, 2, golden(NAME).job(tmp_path / "output", method="auto"))
    output, work = tmp_path / "output", tmp_path / "output.work"
    text = verify(output, ranks)
    assert "compared with the shards" in text and "made again" not in text.replace("can be made again at any time", "")
    name, (file, begin, _) = next((name, place) for name, place in tensors_of(output).items() if ".experts.1." in name)
    flip(file, begin)
    list_again(output)
    assert deviations(output, ranks=ranks) == [f'tensor "{name}" is not that of its shard']
    shutil.rmtree(work / "shards")
    text = verify(output, ranks)
    assert "not checked: values of" in text and "calibration tokens" in text
    content = bytearray(file.read_bytes())
    content[begin : begin + 2] = b"\x80\x7f"  # infinity in bfloat16
    file.write_bytes(content)
    list_again(output)
    assert deviations(output, ranks=ranks) == [f'tensor "{name}" has values that are not finite']


def test_fitted_routers_leave_experts_to_be_made_again(golden, tmp_path):
    run_job(tmp_path, 2, golden(NAME).job(tmp_path / "output", router="fitted"))
    text = verify(tmp_path / "output", 2)
    assert re.search(r"0 routers and \d+ of \d+ experts made again.*equal bit by bit", text)
    assert re.search(r"[1-9] routers? and 0 of \d+ experts compared with the shards.*equal bit by bit", text)


def test_the_demo(tmp_path):
    job = {
        "model": str(DEMO_MODEL), "output": str(tmp_path / "output"), "compression": {"method": "hc-smoe", "experts": 8},
        "calibration": {"files": [str(TRAINING)], "sequences": 8, "length": 128},
    }  # fmt: skip
    run_job(tmp_path, 2, job)
    assert "holds what its plan makes of" in verify(tmp_path / "output", 3)


def test_needs_a_target_and_its_own_options():
    for arguments, expected in [(["verify"], "needs a configuration file"), (["run", "x", "--sample", "3"], "--sample belongs to"),
                                (["plan", "x", "--original", "y"], "--original belongs to")]:  # fmt: skip
        result = run_program([need(PROGRAM), *arguments], timeout=60)
        assert result.returncode == 2 and expected in result.stderr
