"""docker/Dockerfile, executed step by step where there is no container engine, and the quickstart in the result, as the image's user.

It downloads a Debian, its compilers and libtorch and builds the program, some 10 minutes on two cores, so it runs on request:
    HCSMOE_TEST_IMAGE=1 .deps/python/bin/python -m pytest -q -s tests/docker
HCSMOE_TEST_BASE=FOLDER: a tree of `debootstrap --variant=minbase bookworm` to start from instead of a new one
HCSMOE_TEST_CCACHE=FOLDER: a cache of ccache, with which compiling takes less
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, digests, run_job, write_config
from dockerfile import Build, Context, Stage
from hosts import Hosts
from namespaces import need_packages
from slurm import Slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("HCSMOE_TEST_IMAGE") != "1", reason="builds an image: HCSMOE_TEST_IMAGE=1 asks for it"),
]
# What Debian's image for containers has beyond debootstrap: no service is started, and in `slim` no documentation is unpacked.
SLIM = "".join(f"path-exclude {path}\n" for path in (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*"))  # fmt: skip


def make_base(folder: Path, image: str) -> Path:
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim", image), image
    if folder.exists():
        return folder
    given = os.environ.get("HCSMOE_TEST_BASE")
    if given:
        subprocess.run(["cp", "-a", "--reflink=auto", given, folder], check=True)
    else:
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", folder], check=True, capture_output=True)
    for pattern in ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*", "var/cache/apt/archives/*.deb"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
    policy = folder / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    for file in Path("/etc/apt/sources.list.d").glob("debian.sources"):  # this machine's mirror
        shutil.copy(file, folder / "etc/apt/sources.list.d")
        (folder / "etc/apt/sources.list").unlink(missing_ok=True)
    return folder


def of_this_machine() -> tuple:
    """(mounts, environment) that let apt and pip reach what they reach here. Files are mounted elsewhere: packages may write their own there."""
    mounts = {path: path for path in ("/etc/resolv.conf", "/etc/hosts") if Path(path).exists()}
    environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    settings = subprocess.run(["python3", "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    for name, setting in re.findall(r"^\S*\.([\w-]+)='(.*)'$", settings, re.MULTILINE):
        for path in re.findall(r"(?:^|file://| )(/[\w./-]+)", setting):
            if Path(path).is_dir():
                mounts[path] = path
            elif Path(path).is_file():
                mounts[path] = f"/machine{path}"
                setting = setting.replace(path, f"/machine{path}")
        environment.setdefault(f"PIP_{name.replace('-', '_').upper()}", setting)  # the strongest is listed first
    return mounts, environment


class WithCompilerCache(Build):
    """The same steps, with ccache in the first stage."""

    def step_from(self, text):
        super().step_from(text)
        if len(self.stages) == 1:
            self.step_run("apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends ccache")


def megabytes(root: Path) -> float:
    return int(subprocess.check_output(["du", "-s", "--block-size=1000000", "--one-file-system", root], text=True).split()[0])


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Stage:
    need_packages("debootstrap", program="debootstrap")
    work = tmp_path_factory.mktemp("image")
    mounts, environment = of_this_machine()
    cache = os.environ.get("HCSMOE_TEST_CCACHE")
    if cache:
        mounts[cache] = "/ccache:rw"
        environment |= {"CCACHE_DIR": "/ccache", "CCACHE_BASEDIR": "/opt", "CCACHE_NOHASHDIR": "1", "LANG": os.environ.get("LANG", "C")}
    kind = WithCompilerCache if cache else Build
    say = lambda line: print(line, flush=True)  # noqa: E731
    build = kind(Context(REPOSITORY), work, lambda name: make_base(work / "base", name), mounts, environment, say)
    stage = build.run((REPOSITORY / "docker" / "Dockerfile").read_text())
    sizes = [megabytes(folder) for folder in (stage.root, work / "base", stage.root / "opt/hcsmoe/.deps")]
    print("image: {} MB, of which Debian's {} MB and libtorch {} MB".format(*sizes))
    yield stage
    subprocess.run(["rm", "-rf", work], check=True)  # a hundred thousand files


def run_in(image: Stage, *command, mounts=None, user=None, timeout=600) -> subprocess.CompletedProcess:
    """As `docker run IMAGE COMMAND`."""
    line = image.chroot([*image.entrypoint, *(command or image.command)], user=user, mounts=mounts)
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout)


def test_what_it_is(image):
    assert image.user == "hcsmoe" and image.folder == "/work" and image.stop_signal == "SIGUSR1"
    shown = run_in(image)
    assert shown.returncode == 0 and "hcsmoe_dist" in shown.stdout
    assert run_in(image, "id", "-un").stdout.strip() == "hcsmoe"
    assert run_in(image, "sh", "-c", "! touch /opt/hcsmoe/x 2>/dev/null && touch /work/x && rm /work/x").returncode == 0
    for absent in ("g++", "cmake", "python3", "pip"):
        assert run_in(image, "sh", "-c", f"command -v {absent}").returncode != 0, absent
    assert "not found" not in run_in(image, "ldd", "/opt/hcsmoe/bin/hcsmoe_dist").stdout


def test_it_can_be_started_by_slurm(image):
    """Open MPI has its side of PMIx."""
    assert "pmix" in run_in(image, "ompi_info", "--parsable", "--param", "pmix", "all").stdout


def test_quickstart(image, tmp_path):
    result = run_in(image, "quickstart.sh")
    assert result.returncode == 0, result.stdout + result.stderr
    made = image.root / "work/quickstart"
    assert json.loads((made / "compressed/config.json").read_text())["num_experts"] == 8
    assert (made / "compressed").stat().st_uid == 1000
    libtorch = Path(".deps/libtorch/installed.txt")
    ours = (REPOSITORY / libtorch).read_text()
    theirs = (image.root.parent / "stage0/opt/hcsmoe" / libtorch).read_text()
    if ours != theirs:
        return  # another build of libtorch: equal to rounding only
    demo = REPOSITORY / "tests/data/demo"
    job = {
        "model": str(demo / "model"), "output": str(tmp_path / "output"), "compression": {"experts": 8},
        "calibration": {"files": [str(demo / "data/calibration.jsonl")], "sequences": 64, "length": 256},
    }  # fmt: skip
    run_job(tmp_path, 2, job, timeout=900)
    assert digests(made / "compressed") == digests(tmp_path / "output")


def job_of_image(output: str) -> dict:
    demo = "/opt/hcsmoe/tests/data/demo"
    return {
        "model": f"{demo}/model", "output": output, "compression": {"experts": 8}, "device": {"threads": 1},
        "calibration": {"files": [f"{demo}/data/calibration.jsonl"], "sequences": 8, "length": 256},
    }  # fmt: skip


def own_folder(image: Stage, name: str, user: int, job: dict) -> Path:
    folder = image.root / "work" / name
    write_config(folder, job)
    for path in (folder, folder / "config.yaml"):
        os.chown(path, user, user)
    return folder


def test_any_user(image):
    """docker run --user: an id that no file of the image knows."""
    own_folder(image, "anybody", 4242, job_of_image("/work/anybody/output"))
    result = run_in(image, "mpirun", "-np", "2", "hcsmoe_dist", "/work/anybody/config.yaml", user="4242:4242")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (image.root / "work/anybody/output").stat().st_uid == 4242


def test_launcher_and_workers_without_root(image, tmp_path):
    """What launch/kubernetes.yaml starts: sshd on two hosts, hosts.sh on a third, all as the image's user, with keys of the job."""
    launcher, worker = (
        role["template"]["spec"]["containers"][0]["command"]
        for role in list(yaml.safe_load_all((REPOSITORY / "launch/kubernetes.yaml").read_text()))[1]["spec"]["mpiReplicaSpecs"].values()
    )
    keys = tmp_path / "keys"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", keys / "id_rsa"], check=True)
    shutil.copy(keys / "id_rsa.pub", keys / "authorized_keys")
    (keys / "id_rsa").chmod(0o644)  # of root, as the operator mounts it
    tmp_path.chmod(0o755)
    own_folder(image, "pods", 1000, job_of_image("/work/pods/output"))
    folder = Path(tempfile.mkdtemp(prefix="pods-"))
    folder.chmod(0o755)
    mounts = {keys: "/home/hcsmoe/.ssh", folder / "etc_hosts": "/etc/hosts"}
    hosts = None
    try:
        hosts = Hosts(folder, count=2, slots=1, serve=image.chroot(worker, mounts=mounts), port=2222)
        of_the_operator = {"OMPI_MCA_orte_keep_fqdn_hostnames": "true", "OMPI_MCA_orte_default_hostfile": "/etc/mpi/hostfile",
                           "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10"}  # fmt: skip
        of_this_network = {name: value for name, value in hosts.environment().items() if not name.endswith("rsh_agent")}
        command = [word.replace("/config/", "/work/pods/") for word in launcher]
        line = image.chroot(command, mounts=mounts | {hosts.hostfile: "/etc/mpi/hostfile"}, environment=of_the_operator | of_this_network)
        process = hosts.popen(line, tmp_path / "log")
        assert process.wait(600) == 0, (tmp_path / "log").read_text() + "".join((folder / name / "log").read_text() for name in hosts.names)
        assert "2 ranks" in (tmp_path / "log").read_text()
    finally:
        if hosts:
            hosts.stop()
        shutil.rmtree(folder)
    assert digests(image.root / "work/pods/output") == digests(image.root / "work/anybody/output")


# Plays Apptainer as far as `exec [--nv] IMAGE COMMAND` goes: the caller's user and environment, /tmp and the current folder are as outside.
APPTAINER = """#!/bin/bash
[[ $1 == exec ]] || exit 9
shift
[[ $1 != --nv ]] || shift
exec unshare --mount --propagation private bash -ec '
for name in dev proc tmp; do mount --rbind /$name $0/$name; done
exec chroot $0 env {environment} bash -c "cd $PWD && exec \\"\\$@\\"" bash "$@"' "$@"
"""


def test_slurm_starts_ranks_in_the_image(image, tmp_path, monkeypatch):
    """Slurm's PMIx outside, Open MPI's inside, two nodes."""
    monkeypatch.chdir(REPOSITORY)
    tools = tmp_path / "bin"
    tools.mkdir()
    environment = shlex.join(f"{name}={value}" for name, value in image.environment.items())
    (tools / "apptainer").write_text(APPTAINER.replace("{environment}", environment))
    (tools / "apptainer").chmod(0o755)
    assert str(tmp_path).startswith("/tmp/")
    config = write_config(tmp_path, job_of_image(str(tmp_path / "output")))
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = None
    try:
        cluster = Slurm(folder, nodes=2)
        environment = {"HCSMOE_IMAGE": str(image.root), "PATH": f"{tools}:{os.environ['PATH']}"}
        options = [f"--output={tmp_path}/log", "--ntasks-per-node=1", "--gpus-per-node=0"]
        job = cluster.submit(*options, "launch/slurm_nodes.sbatch", config, environment=environment)
        shown = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=600)
        assert shown["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
        assert "2 ranks on n[1-2]: apptainer exec" in (tmp_path / "log").read_text()
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert digests(tmp_path / "output") == digests(image.root / "work/anybody/output")
