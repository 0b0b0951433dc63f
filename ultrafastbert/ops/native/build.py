"""Builds the native operator with the machine's C++ compiler, once, and loads it.

`python -m ultrafastbert.ops.native.build` builds ahead of the first use and says where the library is.

- A build is found again by what it depends on: source, flags, PyTorch, processor and compiler. A home directory that
  several machines share holds one build for each kind of them.
- Processes that start together wait for the one that builds. The lock is the system's and ends with its holder, and
  the library appears under its name when it is whole: a build that is killed stands in nobody's way.
- Where a library for this processor and PyTorch was built ahead, no compiler is needed to use it.
- The library brings no OpenMP runtime: it finds the one that PyTorch has loaded, and so shares its threads.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from ultrafastbert.utils.errors import UserError

SOURCE = Path(__file__).with_name("native.cpp")
SOURCES = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
COMPILE = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]


class BuildError(UserError):
    """The native operator cannot be built or loaded; the message says what to install and what the compiler said."""


def load() -> Path:
    """Loads the operator's library into this process, after building it where it is not there yet.

    Returns the path of the library. Raises `BuildError`.
    """
    try:
        library = build()
        torch.ops.load_library(library)
    except (OSError, NotImplementedError) as error:  # no right to write or to lock, a library that does not fit
        raise BuildError(f"the native operator cannot be built in {_directory()} or loaded: {error}") from error
    return library


def build() -> Path:
    """The path of the library for this source, machine and PyTorch, built if need be (tens of seconds).

    It lies in a directory `ultrafastbert-KEY` of `TORCH_EXTENSIONS_DIR`, by default PyTorch's cache directory for
    extensions. The compiler is `CXX`, by default `c++`.
    """
    compiler, directory = _compiler(), _directory()
    if compiler is None:
        ready = sorted(directory.glob("*.so"))
        if not ready:
            raise BuildError(
                f"the native operator needs a C++ compiler, and {_command()!r} is not there; install g++ 12 or later "
                "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: gxx), or name yours in CXX"
            )
        return ready[0]
    library = directory / f"native-{_digest(compiler)}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "lock"):
            if not library.exists():
                _build(library)
    return library


def _build(library):
    print(f"ultrafastbert: building the native operator, once, in {library.parent} ...", file=sys.stderr, flush=True)
    for left_over in library.parent.glob("building-*"):  # by a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=library.parent) as scratch:
        made, objects = Path(scratch) / library.name, Path(scratch) / "native.o"
        torch_directory = Path(torch.__file__).parent
        include = [torch_directory / "include", torch_directory / "include/torch/csrc/api/include"]
        _run([*COMPILE, *(f"-I{path}" for path in include), "-c", SOURCE, "-o", objects])
        # linked without -fopenmp, which would bring a second OpenMP runtime with threads of its own
        _run(["-shared", objects, "-o", made, f"-L{torch_directory / 'lib'}", "-ltorch_cpu", "-lc10"])
        os.replace(made, library)


def _run(arguments):
    done = subprocess.run([*shlex.split(_command()), *arguments], capture_output=True, text=True)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise BuildError(
            f"the native operator cannot be built: {_command()} ended with code {done.returncode}; g++ 12 or later "
            f"should do (CXX names the compiler). It said:\n{said}"
        )


def _command():
    return os.environ.get("CXX") or "c++"


def _compiler():
    """What the compiler says of its version, or None where there is no compiler."""
    try:
        return subprocess.run([*shlex.split(_command()), "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None


def _directory():
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    sources = [path.read_text() for path in SOURCES]
    return Path(root) / f"ultrafastbert-{_digest(*sources, *COMPILE, torch.__version__, _processor())}"


def _processor():
    """What tells this kind of processor from others that an instruction might be missing on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = {line.partition(":")[0].strip(): line for line in reversed(lines)}  # those of the first core
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join([platform.machine(), *(fields[name] for name in names if name in fields)])


def _digest(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def main():
    try:
        library = load()
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(f"{library}\nbuilt by: {_command()} {shlex.join(COMPILE)}")


if __name__ == "__main__":
    main()
