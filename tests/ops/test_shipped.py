"""Libraries of the native operator that wheels carry: which one is taken, and what happens if there is none."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.ops.test_native import COMPILER, USE, damage_by, environment, start  # noqa: F401  # a fixture
from ultrafastbert.ops import native
from ultrafastbert.ops.native import build, compiling, shipped
from ultrafastbert.utils import hardware

ROOT = Path(__file__).parents[2]
LEVELS = shipped.LEVELS["x86_64"]
AVX2 = {name: True for name in shipped.AVX2}
AVX512 = {name: True for name in shipped.AVX512}

pytestmark = pytest.mark.skipif(build.compiler_version() is None and not native.available(), reason="no C++ compiler")


@pytest.fixture
def carried(monkeypatch, tmp_path, environment):  # noqa: F811
    """The directory of libraries of all levels of x86-64, and a processor with AVX-512 but without bfloat16."""
    for name, value in environment(seconds=0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shipped, "DIRECTORY", tmp_path / "libraries")
    monkeypatch.setattr(shipped.platform, "machine", lambda: "x86_64")
    processor(monkeypatch, AVX512)
    shipped.compile_all(shipped.DIRECTORY)
    return shipped.DIRECTORY


def processor(monkeypatch, capabilities):
    monkeypatch.setattr(hardware.torch.cpu, "get_capabilities", lambda: capabilities)


def level_of(library):
    return library and library.name.partition("-torch")[0]


@pytest.mark.parametrize(
    "capabilities, level",
    [
        ({}, "x86_64"),
        ({"avx2": True}, "x86_64"),
        (AVX2, "avx2"),
        (AVX2 | {"avx512_f": True}, "avx2"),
        (AVX512 | {"fma3": False}, "x86_64"),
        (AVX512, "avx512"),
        (AVX512 | {"avx512_bf16": True, "amx_bf16": True}, "avx512_bf16"),
    ],
)
def test_the_best_that_the_processor_can_run(carried, monkeypatch, capabilities, level):
    processor(monkeypatch, capabilities)
    assert level_of(shipped.find()) == level


def test_each_level_is_compiled_for_itself(carried, tmp_path):
    """`-march=native` would use what only the processor of the builder has."""
    assert sorted(map(level_of, carried.iterdir())) == sorted(level.name for level in LEVELS)
    assert all("-march=native" not in level.flags for levels in shipped.LEVELS.values() for level in levels)
    assert "-march=native" not in compiling.FLAGS


@pytest.mark.parametrize("damage", [0, 0.5, "bit"])
def test_a_damaged_library_is_passed_over(carried, damage):
    library = shipped.find()
    library.write_bytes(damage_by(damage, library.read_bytes()))
    assert level_of(shipped.find()) == "avx2"


def test_nothing_for_another_architecture(carried, monkeypatch):
    monkeypatch.setattr(shipped.platform, "machine", lambda: "riscv64")
    assert shipped.find() is None
    with pytest.raises(compiling.BuildError, match="riscv64; it should be x86_64, aarch64"):
        shipped.compile_all(carried)


def test_another_pytorch_builds_its_own(carried, monkeypatch):
    here = torch.__version__.partition("+")[0]
    monkeypatch.setattr(torch, "__version__", f"{here}+cu999")
    assert level_of(shipped.find()) == "avx512"
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    assert shipped.find() is None
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match=f"carries libraries for PyTorch {here}; this is 3.0.0"):
        build.build()


def test_another_source_builds_its_own(carried, monkeypatch):
    monkeypatch.setattr(shipped, "source_texts", lambda: ["int main() {}"])
    assert shipped.find() is None


def test_a_library_that_cannot_be_loaded_is_built_instead(carried, monkeypatch):
    library = shipped.find()
    loaded = []

    def load_library(path):
        loaded.append(path)
        if path == library:
            raise OSError("version `GLIBCXX_9.9.99' not found")

    monkeypatch.setattr(torch.ops, "load_library", load_library)
    assert build.load() == build.build() != library
    assert loaded == [library, build.build()]


def test_without_a_compiler_nothing_is_compiled(carried, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="there is no C\\+\\+ compiler '/nowhere/c\\+\\+'"):
        shipped.compile_all(carried)


def test_a_failing_compiler_is_named(carried, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match="exited with code 1"):
        shipped.compile_all(carried)


@pytest.mark.slow
def test_the_wheel_runs_without_a_compiler(environment, tmp_path):  # noqa: F811
    """Built with a compiler that gives every level the library of this machine."""
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    command = [sys.executable, "-c", f"from setuptools.build_meta import build_wheel; build_wheel({str(wheels)!r})"]
    # a copy, because setuptools leaves its own files in the source
    shutil.copytree(ROOT / "ultrafastbert", source / "ultrafastbert", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheels.mkdir()
    subprocess.run(command, cwd=source, env=environment(seconds=0), check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not list(ROOT.glob("ultrafastbert/ops/native/libraries"))
    bare = environment(CXX="/nowhere/c++", PYTHONPATH=str(site)) | {"PYTHONSAFEPATH": "1"}
    program = USE + "import ultrafastbert; print(ultrafastbert.__file__)"
    out, error = start(bare, program).communicate()
    assert out.splitlines() == ["native torch.Size([2, 8])", str(site / "ultrafastbert/__init__.py")], error
    assert "compiler" not in error and not (tmp_path / "build").exists()
    shown = [sys.executable, "-m", "ultrafastbert.ops.native.build"]
    printed = subprocess.run(shown, env=bare, capture_output=True, text=True, check=True).stdout.splitlines()
    assert Path(printed[0]).is_relative_to(site) and printed[1] == "carried by the package"
