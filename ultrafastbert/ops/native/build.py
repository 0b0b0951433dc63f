"""Builds the native operator with the machine's C++ compiler, once, and loads it.

`python -m ultrafastbert.ops.native.build` builds it before the first use and prints the path of the library.

- The path of a build contains a hash of all that it depends on: source, flags, PyTorch, processor and compiler. So
  different machines can share a home directory. If the library exists already, no compiler is needed.
- If several processes start together, one builds and the others wait. The operating system releases the lock when its
  holder ends, and a finished library is moved to its path atomically, so a build that is killed does no harm.
- The name of a library ends with a hash of its content. A library that was truncated or changed is never loaded, which
  could kill the process, but built again.
- The library is not linked to an OpenMP runtime. It uses the one that PyTorch has loaded, with the same threads.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import fsync

SOURCE = Path(__file__).with_name("native.cpp")
SOURCES = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
COMPILE = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]


class BuildError(UserError):
    """The native operator cannot be built or loaded; the message says what to install, with the compiler's output."""


def load() -> Path:
    """Loads the library, built first if needed, and returns its path; raises a BuildError if that fails."""
    try:
        library = build()
        torch.ops.load_library(library)
    except (OSError, NotImplementedError) as error:  # no permission to write or lock, an incompatible library
        raise BuildError(f"the native operator cannot be built in {build_directory()} or loaded: {error}") from error
    return library


def build() -> Path:
    """Returns the path of the library for this source, machine and PyTorch; builds it if needed (tens of seconds).

    It is in a directory `ultrafastbert-KEY` of `TORCH_EXTENSIONS_DIR`, by default PyTorch's cache directory for
    extensions. The compiler is `CXX`, by default `c++`. Raises a BuildError if there is no compiler or it fails.
    """
    compiler, directory = _compiler(), build_directory()
    if compiler is None:
        library = _intact(directory, "native-*.so")
        if library is None:
            raise BuildError(
                f"the native operator needs a C++ compiler, and {_command()!r} was not found; install g++ 12 or later "
                "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: gxx), or set CXX to a compiler"
            )
        return library
    name = f"native-{_digest(compiler)}"
    if (library := _intact(directory, f"{name}-*.so")) is None:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "lock"):
            library = _intact(directory, f"{name}-*.so") or _build(directory, name)
    return library


def _intact(directory: Path, pattern: str) -> Path | None:
    """The first library whose content has the hash that ends its name."""
    for library in sorted(directory.glob(pattern)):
        with suppress(OSError):  # it cannot be read, or another process has just removed it
            if library.stem.rpartition("-")[2] == _content_hash(library):
                return library
    return None


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _build(directory: Path, name: str) -> Path:
    """Builds the library `NAME-HASH.so`; the caller holds the lock."""
    print(f"ultrafastbert: building the native operator once, in {directory} ...", file=sys.stderr, flush=True)
    for damaged in directory.glob(f"{name}-*.so"):
        damaged.unlink()
    for left_over in directory.glob("building-*"):  # from a killed process
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=directory) as scratch:
        built, objects = Path(scratch) / f"{name}.so", Path(scratch) / "native.o"
        torch_directory = Path(torch.__file__).parent
        include = [torch_directory / "include", torch_directory / "include/torch/csrc/api/include"]
        _run([*COMPILE, *(f"-I{path}" for path in include), "-c", SOURCE, "-o", objects])
        # without -fopenmp, which would load a second OpenMP runtime with other threads
        _run(["-shared", objects, "-o", built, f"-L{torch_directory / 'lib'}", "-ltorch_cpu", "-lc10"])
        library = directory / f"{name}-{_content_hash(built)}.so"
        fsync(built)
        os.replace(built, library)
        fsync(directory)
    return library


def _run(arguments: list[str | Path]) -> None:
    done = subprocess.run([*shlex.split(_command()), *arguments], capture_output=True, text=True)
    if done.returncode:
        output = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise BuildError(
            f"the native operator cannot be built: {_command()} exited with code {done.returncode}; use g++ 12 or "
            f"later (set CXX to choose a compiler). Its output:\n{output}"
        )


def _command() -> str:
    return os.environ.get("CXX") or "c++"


def _compiler() -> str | None:
    """Returns the version that the compiler prints, or None if there is no compiler."""
    try:
        return subprocess.run([*shlex.split(_command()), "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None


def build_directory() -> Path:
    """Where the libraries for this source, processor and PyTorch are kept, with what else depends on these."""
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    sources = [path.read_text() for path in SOURCES]
    return Path(root) / f"ultrafastbert-{_digest(*sources, *COMPILE, torch.__version__, _processor())}"


def _processor() -> str:
    """Returns a description of the processor's model and instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = {line.partition(":")[0].strip(): line for line in reversed(lines)}  # of the first core
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join([platform.machine(), *(fields[name] for name in names if name in fields)])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def main() -> None:
    """Builds the operator and prints the path of the library and the command."""
    try:
        library = load()
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(f"{library}\nbuilt by: {_command()} {shlex.join(COMPILE)}")


if __name__ == "__main__":
    main()
