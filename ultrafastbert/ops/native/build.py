"""Finds or builds the library of the native operator, and loads it.

`python -m ultrafastbert.ops.native.build` builds it before the first use and prints the path of the library.

- If the package carries a library for this processor and PyTorch (`shipped`), it is used. Otherwise the machine's C++
  compiler builds one, once.
- The path of a build contains a hash of all that it depends on: source, flags, PyTorch, processor and compiler. So
  different machines can share a home directory. If the library exists already, no compiler is needed.
- If several processes start together, one builds and the others wait. The operating system releases the lock when its
  holder ends.
"""

import os
import platform
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from ultrafastbert.ops.native import shipped
from ultrafastbert.ops.native.compiling import (
    FLAGS,
    BuildError,
    compile_library,
    compiler_command,
    compiler_version,
    digest,
    intact,
    remove_left_over,
    source_texts,
)

NATIVE = ["-march=native"]


def load() -> Path:
    """Loads the library, built first if needed, and returns its path; raises a BuildError if that fails."""
    if (library := shipped.find()) is not None:
        with suppress(OSError):  # such as a C++ library that is older than the compiler's
            torch.ops.load_library(library)
            return library
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
    compiler, directory = compiler_version(), build_directory()
    if compiler is None:
        library = intact(directory, "native-*.so")
        if library is None:
            raise BuildError(
                f"the native operator needs a C++ compiler, and {compiler_command()!r} was not found; install g++ 12 "
                "or later (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: gxx), or set CXX to a "
                f"compiler{shipped.why_none()}"
            )
        return library
    name = f"native-{digest(compiler)}"
    if (library := intact(directory, f"{name}-*.so")) is None:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "lock"):
            library = intact(directory, f"{name}-*.so") or _build(directory, name)
    return library


def _build(directory: Path, name: str) -> Path:
    """Builds the library `NAME-HASH.so`; the caller holds the lock."""
    print(f"ultrafastbert: building the native operator once, in {directory} ...", file=sys.stderr, flush=True)
    remove_left_over(directory)
    return compile_library(directory, name, NATIVE)


def build_directory() -> Path:
    """Where the libraries for this source, processor and PyTorch are kept, with what else depends on these."""
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    key = digest(*source_texts(), *FLAGS, *NATIVE, torch.__version__, _processor())
    return Path(root) / f"ultrafastbert-{key}"


def _processor() -> str:
    """Returns a description of the processor's model and instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = {line.partition(":")[0].strip(): line for line in reversed(lines)}  # of the first core
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join([platform.machine(), *(fields[name] for name in names if name in fields)])


def main() -> None:
    """Builds the operator and prints the path of the library and the command."""
    try:
        library = load()
    except BuildError as error:
        sys.exit(f"error: {error}")
    built = f"built by: {compiler_command()} {shlex.join([*FLAGS, *NATIVE])}"
    print(library, "carried by the package" if library.parent == shipped.DIRECTORY else built, sep="\n")


if __name__ == "__main__":
    main()
