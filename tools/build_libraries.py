"""Compile every kernel of the CPU backend ahead, for each kind of x86-64 CPU, into the shared libraries that travel in the wheel.

    python tools/build_libraries.py            # into the package of this checkout, whose processes then run them
    python tools/build_libraries.py FOLDER

It needs Linux on x86-64, Numba with the package's own dependencies, and a C compiler with binutils, of which only the linker and
readelf run. The wheel's build hook (hatch_build.py) calls `build`. A kind of CPU is compiled in a process of its own, in which
Numba's variables say for which; each kernel becomes an object file of position-independent code whose only visible name is the
kernel's, and these are linked. What the libraries ask of the system is checked: no text relocations, no symbol of a glibc newer
than the one that the wheel's tag names.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLIBC = (2, 17)
TAG = "py3-none-manylinux_2_17_x86_64"
NEEDS = ("numba", "numpy", "ml_dtypes", "safetensors")
LINK = ("-shared", "-nostartfiles", "-Wl,-s,-z,defs,-z,text,-z,now,-z,relro,-z,noexecstack,--build-id=none")
IDENTIFY = """
define void @cpuid(i64 %leaf, i64 %under, {i32, i32, i32, i32}* %out) {
  %a = trunc i64 %leaf to i32
  %c = trunc i64 %under to i32
  %all = call {i32, i32, i32, i32} asm sideeffect "cpuid", "={ax},={bx},={cx},={dx},{ax},{cx}"(i32 %a, i32 %c)
  store {i32, i32, i32, i32} %all, {i32, i32, i32, i32}* %out
  ret void
}
define i64 @xgetbv() {
  %both = call {i32, i32} asm sideeffect "xgetbv", "={ax},={dx},{cx}"(i32 0)
  %low = extractvalue {i32, i32} %both, 0
  %high = extractvalue {i32, i32} %both, 1
  %a = zext i32 %low to i64
  %d = zext i32 %high to i64
  %up = shl i64 %d, 32
  %whole = or i64 %a, %up
  ret i64 %whole
}
"""


def reason_against() -> str | None:
    """Why nothing can be built here, in words; None where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"they are for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    missing = [name for name in (compiler(), "readelf") if shutil.which(name) is None]
    return f"there is no {' and no '.join(missing)}" if missing else None


def compiler() -> str:
    return os.environ.get("CC", "cc")


def built() -> list[Path]:
    """The libraries in this checkout and their manifest, if they are what was made from its sources; else nothing."""
    shipped = package_module()
    try:
        manifest = json.loads((shipped.FOLDER / "manifest.json").read_bytes())
        sums = {
            name: hashlib.sha256((shipped.FOLDER / shipped.file_name(name)).read_bytes()).hexdigest() for name in names(shipped)
        }
    except OSError:
        return []
    if (manifest["sources"], manifest["sha256"]) != (shipped.sources(), sums):
        return []
    return [shipped.FOLDER / "manifest.json", *(shipped.FOLDER / shipped.file_name(name) for name in sums)]


def names(shipped) -> list[str]:
    return [shipped.IDENTIFY, *reversed(shipped.TARGETS)]


def build(folder: Path) -> list[Path]:
    """Write the libraries and their manifest into a folder; raises where one cannot be made or asks too much of the system."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    shipped = package_module()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a process
        list(pool.map(lambda name: made_apart(name, folder, shipped), names(shipped)))
    paths = [folder / shipped.file_name(name) for name in names(shipped)]
    for path in paths:
        check(path)
    from llvmlite import __version__ as llvmlite
    from numba import __version__ as numba

    manifest = {
        "sources": shipped.sources(),
        "made_by": f"Numba {numba}, llvmlite {llvmlite}",
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(names(shipped), paths, strict=True)},
    }
    paths.append(folder / "manifest.json")
    paths[-1].write_text(json.dumps(manifest, indent=1) + "\n")
    return paths


def package_module():
    """shipped.py alone: the backend's package, imported, would want machine code."""
    path = ROOT / "tinyroberta" / "backends" / "numba" / "shipped.py"
    spec = importlib.util.spec_from_file_location("tinyroberta_shipped", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_apart(name: str, folder: Path, shipped) -> None:
    """A library, made by a process of its own."""
    target = shipped.TARGETS.get(name, shipped.Target("x86-64", ()))
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "TINYROBERTA_"))}
    variables |= {"NUMBA_CPU_NAME": target.cpu, "NUMBA_CPU_FEATURES": ",".join(f"+{x}" for x in ("sse2", *target.features))}
    variables |= {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": os.devnull}
    command = [sys.executable, __file__, "--only", name, str(folder)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the library {name} cannot be made:\n{done.stdout}{done.stderr}")


def make(name: str, path: Path) -> None:
    """Compile and link one library, for the CPU that Numba's variables name."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()  # of inline assembly
    cpu, features = os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"]
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default")
    if name == package_module().IDENTIFY:
        objects = [machine.emit_object(binding.parse_assembly(IDENTIFY))]
    else:
        objects = kernels(name, machine, binding)
    parts = [path.with_suffix(f".{number}.o") for number in range(len(objects))]
    try:
        for part, content in zip(parts, objects, strict=True):
            part.write_bytes(content)
        subprocess.run([compiler(), *LINK, "-o", str(path), *map(str, parts), "-lm"], check=True)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def kernels(name: str, machine, binding) -> list[bytes]:
    """An object file of each kernel that the CPUs in question can run."""
    from tinyroberta.backends import numba as backend  # noqa: F401 - all modules that have kernels
    from tinyroberta.backends.numba import compiled, shipped

    objects = []
    for kernel in compiled.Kernel.every:
        if kernel.missing() is not None and name != list(shipped.TARGETS)[-1]:  # whose CPUs run all of them
            continue
        entry = shipped.symbol(kernel.function)
        library = compiled.finished(kernel, entry)
        if foreign := compiled.foreign(library) - compiled.C_LIBRARY:
            raise RuntimeError(f"{entry} needs {', '.join(sorted(foreign))}, which the C library has not")
        module = binding.parse_assembly(str(library._final_module))
        for value in (*module.functions, *module.global_variables):
            if not value.is_declaration and value.name != entry:
                value.visibility, value.linkage = "default", "internal"
        objects.append(machine.emit_object(module))
    return objects


def check(path: Path) -> None:
    """Raises where a library asks of the system what the wheel's tag does not promise, or is writable and executable at once."""

    def read(*flags: str) -> str:
        return subprocess.run(["readelf", "-W", *flags, str(path)], capture_output=True, text=True, check=True).stdout

    dynamic = read("-d")
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"Name: GLIBC_([\d.]+)", read("-V"))}
    if "TEXTREL" in dynamic or re.search(r" RWE ", read("-l")):
        raise RuntimeError(f"{path.name} has text relocations, or what is writable and executable")
    if not needed <= {"libc.so.6", "libm.so.6"} or max(versions, default=GLIBC) > GLIBC:
        raise RuntimeError(f"{path.name} needs {sorted(needed)} of versions {sorted(versions)}; the wheel's tag says {TAG}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shipped = package_module()
    folder = given.folder or shipped.FOLDER
    if given.only:
        make(given.only, folder / shipped.file_name(given.only))
        return 0
    if reason := reason_against():
        sys.exit(f"no libraries are made: {reason}")
    for path in build(folder):
        print(f"{path.stat().st_size:9,} bytes  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
