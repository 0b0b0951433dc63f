"""Compiles the native operator into libraries whose names end with a hash of their content.

- A library that was truncated or changed does not have the hash that its name says. It is never loaded, which could
  kill the process.
- A finished library is moved to its path atomically, so a compilation that is killed does no harm.
- Libraries are not linked to an OpenMP runtime. They use the one that PyTorch has loaded, with the same threads.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import fsync

SOURCE = Path(__file__).with_name("native.cpp")
SOURCES = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]


class BuildError(UserError):
    """The native operator cannot be built or loaded; the message says what to install, with the compiler's output."""


def compile_library(directory: Path, name: str, flags: Sequence[str]) -> Path:
    """Compiles `NAME-HASH.so` in tens of seconds, in place of other libraries of this name, and returns its path.

    Args:
        directory: of the library; it exists, and nobody else compiles into it.
        name: of the library, without hash.
        flags: of the compiler, besides `FLAGS`.

    Raises:
        BuildError: the compiler fails.
    """
    for damaged in directory.glob(f"{name}-*.so"):
        damaged.unlink()
    with tempfile.TemporaryDirectory(prefix="building-", dir=directory) as scratch:
        built, objects = Path(scratch) / f"{name}.so", Path(scratch) / "native.o"
        torch_directory = Path(torch.__file__).parent
        include = [torch_directory / "include", torch_directory / "include/torch/csrc/api/include"]
        _run([*FLAGS, *flags, *(f"-I{path}" for path in include), "-c", SOURCE, "-o", objects])
        # without -fopenmp, which would load a second OpenMP runtime with other threads
        _run(["-shared", objects, "-o", built, f"-L{torch_directory / 'lib'}", "-ltorch_cpu", "-lc10"])
        library = directory / f"{name}-{_content_hash(built)}.so"
        fsync(built)
        os.replace(built, library)
        fsync(directory)
    return library


def remove_left_over(directory: Path) -> None:
    """Removes what killed compilations have left in a directory."""
    for left_over in directory.glob("building-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def intact(directory: Path, pattern: str) -> Path | None:
    """The first library whose content has the hash that ends its name."""
    for library in sorted(directory.glob(pattern)):
        with suppress(OSError):  # it cannot be read, or another process has just removed it
            if library.stem.rpartition("-")[2] == _content_hash(library):
                return library
    return None


def digest(*parts: str) -> str:
    """A hash of texts, 16 characters."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def source_texts() -> list[str]:
    """The contents of the source files."""
    return [path.read_text() for path in SOURCES]


def compiler_command() -> str:
    """The compiler: `CXX`, by default `c++`."""
    return os.environ.get("CXX") or "c++"


def compiler_version() -> str | None:
    """What the compiler prints as its version, or None if there is no compiler."""
    command = [*shlex.split(compiler_command()), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return None


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _run(arguments: list[str | Path]) -> None:
    done = subprocess.run([*shlex.split(compiler_command()), *arguments], capture_output=True, text=True)
    if done.returncode:
        output = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise BuildError(
            f"the native operator cannot be built: {compiler_command()} exited with code {done.returncode}; use g++ 12"
            f" or later (set CXX to choose a compiler). Its output:\n{output}"
        )
