"""The tests of the native operators under the compiler's address sanitizer.

A read or write outside of an array, or of memory that is free, ends the process.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = f"{os.environ.get('CXX') or 'c++'} -fsanitize=address -g1"
TESTS = [f"tests/ops/test_{name}.py" for name in ("native", "inference_operators", "cross_entropy", "rotary")]
TESTS.append("tests/layers/test_hard.py")
OTHER = "not build and not compile and not process and not library and not importing and not machine"
"""Without those that start compilers, or processes without the sanitizer."""


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


def library(name):
    """The path of a library of the compiler; its name if there is none."""
    command = [*shlex.split(COMPILER)[:1], f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_native_operators_stay_within_their_arrays(tmp_path):
    sanitizer = library("libasan.so")
    if not Path(sanitizer).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    environment = {
        "CXX": COMPILER,
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
    }
    run("-c", "from ultrafastbert.ops.native import build; build.build()", **environment)
    # it has to be loaded first, and finds exceptions only if the C++ library is loaded, too
    environment["LD_PRELOAD"] = f"{sanitizer} {library('libstdc++.so')}"
    loaded = "from ultrafastbert.ops import native; assert native.available(); print(open('/proc/self/maps').read())"
    maps = run("-c", loaded, **environment)
    assert "libasan" in maps and str(tmp_path) in maps
    # -s: a report is written by the process that ends
    output = run("-m", "pytest", "-q", "-s", "-p", "no:xdist", "-o", "addopts=", "-k", OTHER, *TESTS, **environment)
    assert " passed" in output
