"""A wheel carries the native operator for several instruction sets, if PyTorch and a compiler are there to build it.

That is so for `pip wheel --no-build-isolation --no-deps -w dist .` where this package's dependencies are installed.
Without PyTorch, as in pip's isolated builds, or without a compiler, the wheel has the source only, and the operator is
built on first use. All else is in pyproject.toml.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
COMPILER, *_ = shlex.split(os.environ.get("CXX") or "c++")
HAS_LIBRARIES = (
    platform.machine() in ("x86_64", "aarch64")
    and shutil.which(COMPILER) is not None
    and all(map(find_spec, ("torch", "transformers")))  # importing the package needs both
)


class BuildPackage(build_py):
    """Compiles the libraries into the package that is packed, never into the source."""

    def run(self) -> None:
        """Copies the modules, then compiles."""
        super().run()
        if HAS_LIBRARIES and not self.editable_mode:
            directory = (Path(self.build_lib) / "ultrafastbert/ops/native/libraries").absolute()
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "ultrafastbert.ops.native.shipped", str(directory)]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)


class BuildWheel(bdist_wheel):
    """The libraries depend on the platform, but not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform in the name of the wheel."""
        *others, system = super().get_tag()
        return ("py3", "none", system) if HAS_LIBRARIES else (*others, system)


class Platform(Distribution):
    """Belongs to a platform if there are libraries."""

    def has_ext_modules(self) -> bool:
        """Whether files go where those of a platform go."""
        return HAS_LIBRARIES


setup(cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel}, distclass=Platform)
