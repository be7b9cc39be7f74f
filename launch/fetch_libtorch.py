#!/usr/bin/env python3
"""Brings libtorch out of pip's torch wheel: headers, libtorch_cpu, libc10, and the libraries that these need. No more than that is kept.

usage: fetch_libtorch.py REQUIREMENT TARGET

pip may give the CPU wheel or the CUDA one. The libtorch_cpu of the CUDA wheel needs a few NVIDIA libraries even where there is no GPU;
they are taken from the wheels that the torch wheel itself pins. TARGET/installed.txt says what was kept; its first line is REQUIREMENT.
TARGET is complete or absent: it is filled under a temporary name and renamed.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

WANTED = ["libtorch_cpu.so", "libc10.so"]
# What every glibc system with g++ has: the libraries that a manylinux wheel may take from the system.
SYSTEM = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|gcc_s|stdc\+\+))\.so\.\d+")
# Libraries of other wheels, and how the names of these wheels begin. They are pinned by torch, or by a package that it pins.
PROVIDERS = {"libcupti.so": "nvidia-cuda-cupti", "libcudart.so": "nvidia-cuda-runtime"}
COLLECTION = "cuda-toolkit"


def fail(message):
    print(f"build: {message}", file=sys.stderr)
    sys.exit(2)


def download(requirement, folder):
    """The wheel that pip takes for this machine."""
    folder.mkdir()
    print(f"build: pip download {requirement}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    # pip's temporary files go where the space is: /tmp may be a small file system in memory.
    result = subprocess.run(command + ["--dest", str(folder), requirement], env={**os.environ, "TMPDIR": str(folder)}, stdout=sys.stderr)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        fail(f"pip could not download {requirement} (its messages are above).\n"
             "  hint: is the network reachable, and is pip set up for it (pip config list)? Without a network, copy the wheel here and set\n"
             "  PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER, or set HCSMOE_TORCH to the folder of an installed Python package torch")
    return wheels[0]


def pinned(wheel, extras=()):
    """The requirements name==version of a wheel's METADATA, {name: version}, and the extras they ask for, {name: [extra]}.
    Of those that hold for an extra only (`; extra == "x"`), the ones in `extras`."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    versions, asked = {}, {}
    for name, wanted, version, marker in re.findall(r"^Requires-Dist: ([\w.-]+)(?:\[([\w,-]*)\])? ?\(?==([\w.+*]+)\)?(.*)$", text, re.M):
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if not extra or extra[1] in extras:
            versions[name.lower()] = version
            asked[name.lower()] = wanted.split(",")
    return versions, asked


def needed(library):
    """Names of the shared libraries that a library is linked with."""
    listing = subprocess.run(["readelf", "--dynamic", "--wide", str(library)], env={**os.environ, "LC_ALL": "C"},
                             capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", listing)


def extract(archive, member, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


class Wheels:
    """The torch wheel, and the wheels it pins, downloaded when a library is asked for."""

    def __init__(self, torch, folder):
        self.torch = torch
        self.folder = folder
        self.pins = None
        self.opened = [torch]

    def pins_of_all(self):
        if self.pins is None:
            self.pins, asked = pinned(self.torch)
            if COLLECTION in self.pins:
                collection = download(f"{COLLECTION}=={self.pins[COLLECTION]}", self.folder / COLLECTION)
                self.pins.update(pinned(collection, asked[COLLECTION])[0])
        return self.pins

    def find(self, library):
        """(wheel, member) that holds the library; the wheel is downloaded if need be."""
        for wheel in self.opened:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.rpartition("/")[2] == library:
                        return wheel, member
        provider = PROVIDERS.get(re.sub(r"\.so\..*", ".so", library))
        name = next((name for name in sorted(self.pins_of_all()) if provider and name.startswith(provider)), None)
        if name is None or any(wheel.parent.name == name for wheel in self.opened):
            fail(f"{self.torch.name} needs {library}, which is neither in it nor in a wheel that it pins.\n"
                 "  hint: set HCSMOE_TORCH_REQUIREMENT to another version, or HCSMOE_TORCH to an installed one")
        self.opened.append(download(f"{name}=={self.pins[name]}", self.folder / name))
        return self.find(library)


def fill(requirement, folder, tree):
    torch = download(requirement, folder / "torch")
    wheels = Wheels(torch, folder)
    with zipfile.ZipFile(torch) as archive:
        for member in archive.namelist():
            if member.startswith("torch/include/") and not member.endswith("/"):
                extract(archive, member, tree / member.removeprefix("torch/"))
    kept, waiting = [], list(WANTED)
    while waiting:
        name = waiting.pop(0)
        if SYSTEM.fullmatch(name) or (tree / "lib" / name).exists():
            continue
        wheel, member = wheels.find(name)
        with zipfile.ZipFile(wheel) as archive:
            extract(archive, member, tree / "lib" / name)
        kept.append(f"{name} from {wheel.name}")
        waiting += needed(tree / "lib" / name)
    (tree / "installed.txt").write_text("\n".join([requirement, f"include from {torch.name}", *kept]) + "\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    requirement, target = sys.argv[1], pathlib.Path(sys.argv[2])
    for leftover in target.parent.glob(f"{target.name}.partial-*"):  # of a call that was killed; build.sh holds a lock
        shutil.rmtree(leftover)
    # pip must have written its wheels, and we the tree, on the file system of the target, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-", dir=target.parent) as temporary:
        folder = pathlib.Path(temporary).resolve()
        try:
            fill(requirement, folder, folder / "tree")
            if target.is_symlink():
                target.unlink()
            elif target.exists():
                target.rename(folder / "old")
            (folder / "tree").rename(target)
        except OSError as error:
            fail(f"libtorch could not be written: {error}\n  hint: about 1.2 GB must be free on this file system, half of it for a while only")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"build: {target}: {size / 1e6:.0f} MB kept of {requirement}", file=sys.stderr)


if __name__ == "__main__":
    main()
