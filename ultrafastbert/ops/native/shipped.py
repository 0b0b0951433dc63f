"""Libraries of the native operator that a wheel carries, for several instruction sets.

`python -m ultrafastbert.ops.native.shipped DIRECTORY` compiles them; `setup.py` does so for a wheel. With them, no
compiler is needed and nothing is built on first use.

A library is for one release of PyTorch, because its C++ interface changes from release to release. (Its stable
interface does not suffice: errors of the operators would all be RuntimeErrors, where PyTorch's conventions ask for
ValueError and TypeError.) With another release the operator is built on first use, as without a wheel.
"""

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

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
from ultrafastbert.utils.hardware import processor_has

DIRECTORY = Path(__file__).with_name("libraries")
AVX2 = ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt")
AVX512 = (*AVX2, "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")


class Level(NamedTuple):
    """An instruction set that the operator is compiled for.

    Attributes:
        name: in the names of libraries.
        flags: of the compiler.
        needs: what the processor must have, by the names in `torch.cpu.get_capabilities`.
    """

    name: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def runs_here(self) -> bool:
        """Whether this processor has the instructions."""
        return all(map(processor_has, self.needs))


LEVELS = {
    "x86_64": (
        Level("avx512_bf16", ("-march=x86-64-v4", "-mavx512bf16"), (*AVX512, "avx512_bf16")),
        Level("avx512", ("-march=x86-64-v4",), AVX512),
        Level("avx2", ("-march=x86-64-v3",), AVX2),
        Level("x86_64", ("-march=x86-64",), ()),
    ),
    "aarch64": (Level("aarch64", ("-march=armv8-a",), ()),),
}
"""By `platform.machine()`, the best ones first."""


def find() -> Path | None:
    """The best library for this processor, PyTorch and source that the package carries undamaged, if there is one."""
    for level in LEVELS.get(platform.machine(), ()):
        if level.runs_here and (library := intact(DIRECTORY, f"{_name(level)}-*.so")):
            return library
    return None


def why_none() -> str:
    """A phrase for errors if the package carries libraries and none is for this PyTorch; otherwise empty."""
    releases = {file.name.partition("-torch")[2].partition("-")[0] for file in DIRECTORY.glob("*-torch*.so")}
    if not releases or _release() in releases:
        return ""
    return f" (the package carries libraries for PyTorch {', '.join(sorted(releases))}; this is {_release()})"


def compile_all(directory: Path = DIRECTORY) -> list[Path]:
    """Compiles the libraries of all levels of this machine's architecture; raises a BuildError if that fails."""
    levels = LEVELS.get(platform.machine())
    if levels is None:
        raise BuildError(f"this machine is of the architecture {platform.machine()}; it should be {', '.join(LEVELS)}")
    if compiler_version() is None:
        raise BuildError(f"there is no C++ compiler {compiler_command()!r}; install g++ 12 or later, or set CXX")
    directory.mkdir(parents=True, exist_ok=True)
    remove_left_over(directory)
    with ThreadPoolExecutor(max_workers=2) as pool:  # a compiler takes half a gigabyte
        return list(pool.map(lambda level: compile_library(directory, _name(level), level.flags), levels))


def _name(level: Level) -> str:
    return f"{level.name}-torch{_release()}-{digest(*source_texts(), *FLAGS, *level.flags)}"


def _release() -> str:
    return torch.__version__.partition("+")[0]  # builds for CPUs and for CUDA have the same interface


def main() -> None:
    """Compiles the libraries into the directory that the command line names, or into the package."""
    try:
        libraries = compile_all(*map(Path, sys.argv[1:]))
    except BuildError as error:
        sys.exit(f"error: {error}")
    print("\n".join(map(str, libraries)))


if __name__ == "__main__":
    main()
