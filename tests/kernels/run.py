"""Boots Debian's kernels under QEMU and runs `guest.py` in each: every BPF object loads, exec, TCP, UDP, SCTP are seen.

    python tests/kernels/run.py [KERNEL …]

KERNEL is a package (linux-image-6.1.0-56-cloud-amd64) or the file of a kernel image; without one, the newest of each
series that apt offers. Needs QEMU and apt-get, about 1 GB of disk and of memory, no root, no KVM.
Downloads and consoles' output are kept in .build/kernels. Exit code 1: a kernel failed.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import initramfs

HERE = Path(__file__).parent
KEPT = HERE.parent.parent / ".build" / "kernels"
PACKAGE = re.compile(r"^linux-image-((\d+\.\d+)\.[\w.+~-]+)-cloud-amd64$")
"""Kernels for virtual machines: the same source and options as the others, fewer drivers."""
MODULES = ("crc32c_generic", "libcrc32c", "udp_tunnel", "ip6_udp_tunnel", "sctp")
"""Modules that the guest loads, in their order: SCTP, and what it needs."""
TIMEOUT = 600.0
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off PYTHONPATH=/agent PYTHONDONTWRITEBYTECODE=1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="package or kernel image")
    wanted = parser.parse_args().kernels or offered()
    for program in ("qemu-system-x86_64", "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing (Debian: apt install qemu-system-x86 apt dpkg)")
    if not wanted:
        parser.error("apt offers no kernel: run apt-get update")
    KEPT.mkdir(parents=True, exist_ok=True)
    archive = KEPT / "initramfs.gz"
    archive.write_bytes(initramfs.build(HERE / "guest.py", *needed()))
    print(f"initramfs: {archive.stat().st_size >> 20} MB")
    failed = [kernel for kernel in wanted if not works(*unpacked(kernel), archive)]
    print(f"{len(wanted) - len(failed)} of {len(wanted)} kernels passed" + "".join(f", not {name}" for name in failed))
    return 1 if failed else 0


def offered() -> list[str]:
    """The newest package of each series that apt knows."""
    search = ["apt-cache", "search", "--names-only", "^linux-image-[0-9].*-cloud-amd64$"]
    output = subprocess.run(search, capture_output=True, text=True, check=True).stdout
    newest: dict[str, tuple[list[int], str]] = {}
    for name in (line.split()[0] for line in output.splitlines()):
        if match := PACKAGE.match(name):
            version = [int(number) for number in re.findall(r"\d+", match[1])]
            newest[match[2]] = max(newest.get(match[2], (version, name)), (version, name))
    return [name for _, name in sorted(newest.values())]


def needed() -> tuple[list[Path], Path, set[Path]]:
    """What `guest.py` imports besides the standard library; libbpf; all shared objects that it maps."""
    before = set(sys.modules)
    import guest

    from zeek_agent.bpf.libbpf import BpfObject

    guest.sources()
    tops = {name.partition(".")[0] for name in sys.modules.keys() - before} - {"guest"}
    standard = Path(sysconfig.get_path("stdlib"))
    files = [Path(str(sys.modules[name].__file__)) for name in tops if getattr(sys.modules[name], "__file__", None)]
    packages = [
        path.parent if path.name.startswith("__init__.") else path
        for path in files
        if "site-packages" in path.parts or not path.is_relative_to(standard)
    ]
    BpfObject(guest.objects()[0]).close()
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    libbpf = next(path.parent / "libbpf.so.1" for path in mapped if path.name.startswith("libbpf.so"))
    return packages, libbpf, mapped


def unpacked(kernel: str) -> tuple[Path, Path | None]:
    """The kernel's image and an archive of modules, out of its package."""
    if Path(kernel).is_file():
        return Path(kernel), None
    release = kernel.removeprefix("linux-image-")
    image, modules = KEPT / f"vmlinuz-{release}", KEPT / f"modules-{release}.gz"
    if image.exists() and modules.exists():
        return image, modules
    print(f"{kernel}: downloading")
    subprocess.run(["apt-get", "download", "-qq", kernel], cwd=KEPT, check=True)
    (package,) = KEPT.glob(f"{kernel}_*.deb")
    archive = initramfs.Archive()
    for path, content in files(package):
        if path == f"./boot/vmlinuz-{release}":
            image.write_bytes(content)
        elif (name := path.rpartition("/")[2].partition(".ko")[0]) in MODULES:
            plain = lzma.decompress(content) if path.endswith(".xz") else content
            archive.file(f"modules/{MODULES.index(name)}-{name}.ko", plain)
    modules.write_bytes(archive.packed())
    package.unlink()
    return image, modules


def files(package: Path) -> Iterator[tuple[str, bytes]]:
    """The kernel images and modules of a package."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as entries,
    ):
        for entry in entries:
            if re.search(r"/vmlinuz-|\.ko(\.xz)?$", entry.name) and (content := entries.extractfile(entry)) is not None:
                yield entry.name, content.read()


def works(kernel: Path, modules: Path | None, archive: Path) -> bool:
    """Boot the kernel, print the results."""
    print(f"\n{kernel.name.removeprefix('vmlinuz-')}")
    console = KEPT / f"{kernel.name}.log"
    whole = KEPT / "initrd"  # the kernel unpacks one archive after the other
    whole.write_bytes(archive.read_bytes() + (modules.read_bytes() if modules else b""))
    begin, ended, passed = time.monotonic(), False, True
    for line in boot(kernel, whole, console):
        if line == "END":
            ended = True
        if line.startswith("RESULT "):
            result = json.loads(line.removeprefix("RESULT "))
            passed = passed and result["error"] is None
            print(f"  {'failed' if result['error'] else 'ok':8}{result['name']:18}{result['seconds']:6.2f} s")
            if result["error"]:
                print(f"          {result['error']}")
    if not ended:
        print(f"  failed  the machine did not come to its end, see {console}")
    print(f"  {time.monotonic() - begin:.0f} s in all")
    return passed and ended


def boot(kernel: Path, archive: Path, console: Path) -> Iterator[str]:
    """The console's lines, until the machine ends or its time is over."""
    machine = ["nice", "timeout", str(TIMEOUT), "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"]
    machine += ["-m", "1G", "-smp", "2", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
    machine += ["-kernel", str(kernel), "-initrd", str(archive), "-append", COMMAND_LINE]
    with (
        console.open("w") as log,
        subprocess.Popen(
            machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        ) as running,
    ):
        assert running.stdout is not None
        for line in running.stdout:
            log.write(line)
            yield line.strip()


if __name__ == "__main__":
    sys.exit(main())
