"""Executes a Dockerfile where there is no container engine: every stage is a folder, and RUN happens in it with chroot.

It knows what our Dockerfiles use (FROM, ARG, ENV, LABEL, COPY, RUN, WORKDIR, USER, STOPSIGNAL, ENTRYPOINT, CMD) and refuses all else. Needs
root; mounts live in namespaces of each command and are gone with it.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DockerfileError(Exception):
    pass


@dataclass
class Instruction:
    line: int
    name: str
    text: str


def parse(text: str) -> list:
    """Comments and empty lines are dropped, continued lines joined."""
    found, pending, begin = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or pending):
            continue
        begin = begin if pending else number
        if line.endswith("\\"):
            pending += line[:-1].strip() + " "
            continue
        name, _, rest = (pending + line.strip()).partition(" ")
        found.append(Instruction(begin, name, rest.strip()))
        pending = ""
    if pending:
        raise DockerfileError(f"line {begin}: the last line is continued")
    return found


class Context:
    """The files that a build may copy: those that .dockerignore leaves. Of its rules: `*`, `!PATH` with all below it, `**/NAME`."""

    def __init__(self, folder: Path):
        self.folder = folder
        lines = [line.strip() for line in (folder / ".dockerignore").read_text().splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if lines[:1] != ["*"] or not all(line.startswith(("!", "**/")) for line in lines[1:]):
            raise DockerfileError(".dockerignore must leave out all and then name what is let in")
        self.let_in = [line[1:] for line in lines[1:] if line.startswith("!")]
        self.never = [line[3:] for line in lines[1:] if line.startswith("**/")]

    def has(self, path: str) -> bool:
        inside = any(path == name or path.startswith(name + "/") for name in self.let_in)
        return inside and not any(fnmatch.fnmatch(part, name) for part in path.split("/") for name in self.never)

    def copy(self, source: str, target: Path):
        """Copies a file, or what is in a folder, as Docker does."""
        whole = self.folder / source
        if not whole.exists():
            raise DockerfileError(f"COPY {source}: not there")
        files = [whole] if whole.is_file() else sorted(file for file in whole.rglob("*") if file.is_file())
        files = [file for file in files if self.has(str(file.relative_to(self.folder)))]
        if not files:
            raise DockerfileError(f"COPY {source}: .dockerignore leaves nothing of it")
        for file in files:
            to = target if whole.is_file() else target / file.relative_to(whole)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)


@dataclass
class Stage:
    root: Path
    environment: dict = field(default_factory=lambda: {"PATH": PLAIN_PATH})
    arguments: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    entrypoint: list = field(default_factory=list)
    command: list = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def chroot(self, command: list, user=None, folder=None, environment=None, mounts=None, extra=None) -> list:
        """The command line that runs `command` inside. mounts: {outside: inside}, read-only unless `inside` ends with ":rw"."""
        user, folder = user or self.user, folder or self.folder
        lines = [f"mount --rbind /dev {self.root}/dev", f"mount -t proc proc {self.root}/proc"]
        for outside, inside in (mounts or {}).items():
            target = f"{self.root}{inside.removesuffix(':rw')}"
            make = f"mkdir -p {target}" if Path(outside).is_dir() else f"mkdir -p $(dirname {target}) && touch -a {target}"
            lines += [make, f"mount --rbind {outside} {target}"]
            if not inside.endswith(":rw"):
                lines.append(f"mount -o remount,bind,ro {target}")
        values = self.environment | (environment or {}) | (extra or {})
        if user != "root":
            values.setdefault("HOME", f"/home/{user}")
        assign = " ".join(shlex.quote(f"{name}={value}") for name, value in values.items())
        inside = f"cd {shlex.quote(folder)} && exec {shlex.join(map(str, command))}"
        lines.append(f"exec env -i {assign} chroot --userspec={user} --groups= {self.root} /bin/sh -c {shlex.quote(inside)}"
                     if user != "root" else f"exec env -i {assign} chroot {self.root} /bin/sh -c {shlex.quote(inside)}")  # fmt: skip
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-ec", "\n".join(lines)]


class Build:
    """make_base(image name) -> folder with its files. mounts and environment: what RUN needs of this machine (network settings, caches)."""

    def __init__(self, context: Context, work: Path, make_base, mounts=None, environment=None, say=print):
        self.context, self.work, self.make_base, self.say = context, work, make_base, say
        self.mounts, self.extra = mounts or {}, environment or {}
        self.stages, self.names, self.globals = [], {}, {}

    def run(self, text: str) -> Stage:
        """The last stage."""
        for instruction in parse(text):
            step = getattr(self, f"step_{instruction.name.lower()}", None)
            if step is None or not instruction.name.isupper():
                raise DockerfileError(f"line {instruction.line}: {instruction.name} is not known here")
            if not self.stages and instruction.name not in ("ARG", "FROM"):
                raise DockerfileError(f"line {instruction.line}: {instruction.name} before FROM")
            self.say(f"{instruction.name} {instruction.text}")
            step(instruction.text)
        return self.stages[-1]

    def expand(self, text: str, values: dict) -> str:
        def value(match):
            name = match[1] or match[2]
            if name not in values:
                raise DockerfileError(f"{name} has no value in: {text}")
            return values[name]

        return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)

    @property
    def stage(self) -> Stage:
        return self.stages[-1]

    def step_arg(self, text):
        name, _, value = text.partition("=")
        if self.stages:
            self.stage.arguments[name] = value or self.globals.get(name, "")
        else:
            self.globals[name] = value

    def step_from(self, text):
        match = re.fullmatch(r"(\S+)(?: AS (\w+))?", self.expand(text, self.globals))
        if not match:
            raise DockerfileError(f"FROM {text}")
        root = self.work / f"stage{len(self.stages)}"
        base = self.names[match[1]].root if match[1] in self.names else self.make_base(match[1])
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        self.stages.append(Stage(root))
        if match[2]:
            self.names[match[2]] = self.stage

    def step_env(self, text):
        for word in shlex.split(self.expand(text, self.stage.arguments | self.stage.environment)):
            name, _, value = word.partition("=")
            self.stage.environment[name] = value

    def step_label(self, text):
        self.stage.labels |= dict(word.split("=", 1) for word in shlex.split(text))

    def inside(self, path: str) -> str:
        return path if path.startswith("/") else os.path.join(self.stage.folder, path)

    def step_copy(self, text):
        *words, target = text.split()
        options = [word for word in words if word.startswith("--")]
        sources = [word for word in words if not word.startswith("--")]
        to_folder = target.endswith("/") or len(sources) > 1
        target = Path(f"{self.stage.root}{os.path.normpath(self.inside(target))}")
        for source in sources:
            to = target / Path(source).name if to_folder else target
            if not options:
                self.context.copy(source, to)
                continue
            origin = re.fullmatch(r"--from=(\w+)", options[0])
            if len(options) > 1 or not origin or origin[1] not in self.names:
                raise DockerfileError(f"COPY {text}")
            to.parent.mkdir(parents=True, exist_ok=True)
            path = Path(f"{self.names[origin[1]].root}{source}")
            subprocess.run(["cp", "-a", "--reflink=auto", *([f"{path}/.", f"{to}/"] if path.is_dir() else [path, to])], check=True)

    def step_run(self, text):
        variables = self.stage.arguments | self.stage.environment
        command = self.stage.chroot(["/bin/sh", "-c", text], environment=variables, mounts=self.mounts, extra=self.extra)
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise DockerfileError(f"RUN {text}: exit code {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")

    def step_workdir(self, text):
        self.stage.folder = self.inside(text)
        Path(f"{self.stage.root}{self.stage.folder}").mkdir(parents=True, exist_ok=True)

    def step_user(self, text):
        self.stage.user = text

    def step_stopsignal(self, text):
        self.stage.stop_signal = text

    def step_entrypoint(self, text):
        self.stage.entrypoint = json.loads(text)

    def step_cmd(self, text):
        self.stage.command = json.loads(text)
