"""What can be seen in docker/ and launch/ without building anything, and the Dockerfile interpreter of the test that does build."""

import re
import shutil
import subprocess

import pytest
import yaml
from conftest import REPOSITORY
from dockerfile import PLAIN_PATH, Build, Context, DockerfileError, Stage, parse

DOCKER, LAUNCH = REPOSITORY / "docker", REPOSITORY / "launch"
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]


def instructions(name: str, kind: str) -> list:
    return [instruction.text for instruction in parse((DOCKER / name).read_text()) if instruction.name == kind]


def definition() -> list:
    """hcsmoe.def as [(section, [lines])]; a header starts a section too."""
    sections = []
    for line in (DOCKER / "hcsmoe.def").read_text().splitlines():
        if line.startswith("%") or line.startswith("Bootstrap:"):
            sections.append((line.split()[0] if line.startswith("%") else "header", [line]))
        elif line.strip() and not line.lstrip().startswith("#"):
            sections[-1][1].append(line.strip())
    return sections


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile(name):
    known = {step.removeprefix("step_").upper() for step in dir(Build) if step.startswith("step_")}
    found = parse((DOCKER / name).read_text())
    assert {instruction.name for instruction in found} <= known
    assert instructions(name, "USER") == ["hcsmoe"]
    base = instructions(name, "ARG")[0].removeprefix("DEBIAN=")
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim", base), "a tag that never changes"
    assert len(instructions(name, "FROM")) == 2 and all("${DEBIAN}" in text for text in instructions(name, "FROM"))
    headers = [lines for section, lines in definition() if section == "header"]
    assert [lines[1] for lines in headers] == [f"From: {base}"] * 2, "the same Debian in hcsmoe.def"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_copies_what_is_there(name, tmp_path):
    context = Context(REPOSITORY)
    for number, text in enumerate(instructions(name, "COPY")):
        if not text.startswith("--from"):
            for source in text.split()[:-1]:
                context.copy(source, tmp_path / str(number))  # throws if it is not there or left out by .dockerignore
    for secret in (".git/config", ".deps/lock", "build/hcsmoe_dist", "tests/data/demo/train.py"):
        assert not context.has(secret), secret


def test_apptainer_definition():
    sections = definition()
    stages = [name for name, _ in sections].index("header", 1)
    assert {name for name, _ in sections[:stages]} == {"header", "%arguments", "%files", "%post"}
    for name, lines in sections:
        if name == "%files" and lines[0] == "%files":
            for line in lines[1:]:
                source, target = line.split()
                assert (REPOSITORY / source).exists() and target == f"/opt/hcsmoe/{source}"
        if name in ("%post", "%environment", "%runscript", "%test"):
            script = "\n".join(lines[1:]).replace("{{ preset }}", "cpu")
            assert subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_kubernetes_manifest():
    config, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (config["kind"], job["kind"], job["apiVersion"]) == ("ConfigMap", "MPIJob", "kubeflow.org/v2beta1")
    assert set(yaml.safe_load(config["data"]["config.yaml"])) <= {"model", "output", "calibration", "compression", "device"}
    sshd = (DOCKER / "sshd_config").read_text()
    assert f"HostKey {job['spec']['sshAuthMountPath']}/id_rsa" in sshd
    workers = job["spec"]["mpiReplicaSpecs"]["Worker"]
    for role in job["spec"]["mpiReplicaSpecs"].values():
        pod = role["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == 1000
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        program = pod["containers"][0]["command"][0]
        assert not program.startswith("/opt/hcsmoe") or (REPOSITORY / program.removeprefix("/opt/hcsmoe/")).exists()
    container = workers["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(job["spec"]["slotsPerWorker"])
    assert f"Port {container['readinessProbe']['tcpSocket']['port']}\n" in sshd + (DOCKER / "ssh_config").read_text()


SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *DOCKER.glob("*.sh")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_script(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck"):
        sets_for_others = "--exclude=SC2034,SC2154"
        options = ["--external-sources", "--shell=bash", "--severity=warning", sets_for_others]
        checked = subprocess.run(["shellcheck", *options, script.name], cwd=script.parent, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_sbatch_scripts_differ_where_they_must():
    def options(name):
        lines = (LAUNCH / name).read_text().splitlines()
        assert lines[-1] == 'source "${HCSMOE_ROOT:-$SLURM_SUBMIT_DIR}/launch/slurm_job.sh"'
        return {line for line in lines if line.startswith("#SBATCH")}

    one = options("slurm.sbatch")
    assert {"#SBATCH --signal=USR1@180", "#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --gpus-per-node=8"} <= one
    assert one ^ options("slurm_nodes.sbatch") == {"#SBATCH --nodes=1", "#SBATCH --nodes=2"}
    assert one ^ options("slurm_preemptible.sbatch") == {"#SBATCH --time-min=00:30:00"}


# The interpreter.


def test_continued_lines_and_comments():
    found = parse("# c\nFROM a AS b\n\nRUN one \\\n  # between\n  && two\nUSER x\n")
    assert [(instruction.line, instruction.name, instruction.text) for instruction in found] == [
        (2, "FROM", "a AS b"), (4, "RUN", "one && two"), (7, "USER", "x")]  # fmt: skip


@pytest.mark.parametrize(
    "text, message",
    [
        ("USER x\n", "before FROM"),
        ("FROM base\nVOLUME /x\n", "VOLUME is not known"),
        ("FROM base\nCOPY absent .\n", "not there"),
        ("FROM base\nCOPY secret .\n", "leaves nothing"),
        ("FROM base\nCOPY --chown=x file .\n", "COPY"),
        ("FROM ${NOTHING}\n", "NOTHING has no value"),
        ("FROM base\nRUN x \\\n", "continued"),
    ],
)
def test_refused(tmp_path, text, message):
    (tmp_path / ".dockerignore").write_text("*\n!file\n!absent\n")
    for name in ("file", "secret"):
        (tmp_path / name).write_text(name)
    (tmp_path / "base").mkdir()
    build = Build(Context(tmp_path), tmp_path, lambda name: tmp_path / name, say=lambda line: None)
    with pytest.raises(DockerfileError, match=message):
        build.run(text)


def test_stages_are_filled(tmp_path):
    (tmp_path / ".dockerignore").write_text("*\n!folder\n**/*.o\n")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for name in ("a", "below/b", "below/c.o"):
        (tmp_path / "folder" / name).write_text(name)
    (tmp_path / "base").mkdir()
    text = """
ARG IMAGE=base
FROM ${IMAGE} AS first
WORKDIR /w
COPY folder to
FROM ${IMAGE}
ENV A=1
ENV B="$A 2" \\
    C=${A}3
LABEL one="1 2" \\
      two=3
COPY --from=first /w/to /x
WORKDIR /y
WORKDIR z
USER me
STOPSIGNAL SIGUSR1
ENTRYPOINT ["e"]
CMD ["c", "d"]
"""
    (tmp_path / "stages").mkdir()
    stage = Build(Context(tmp_path), tmp_path / "stages", lambda name: tmp_path / name, say=lambda line: None).run(text)
    assert sorted(str(file.relative_to(stage.root)) for file in stage.root.rglob("*") if file.is_file()) == ["x/a", "x/below/b"]
    environment, labels = {"PATH": PLAIN_PATH, "A": "1", "B": "1 2", "C": "13"}, {"one": "1 2", "two": "3"}
    assert stage == Stage(stage.root, environment, {}, labels, "/y/z", "me", ["e"], ["c", "d"], "SIGUSR1")
