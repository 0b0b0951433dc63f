"""The tests of the native operators under the address and undefined-behaviour sanitizers of the compiler.

A read or write outside of an array, a misaligned one, a signed overflow or a shift that is too far ends the process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = f"{os.environ.get('CXX') or 'c++'} -fsanitize=address,undefined -fno-sanitize-recover=undefined -g1"
TESTS = ["tests/ops/test_native.py", "tests/ops/test_inference_operators.py", "tests/layers/test_hard.py"]
OTHER = "not build and not compile and not process and not library and not importing and not machine"
"""Without those that start compilers, or processes without the sanitizers."""


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


@pytest.mark.slow
def test_native_operators_stay_within_their_arrays(tmp_path):
    runtimes = [
        subprocess.run([*COMPILER.split()[:1], f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path.strip()).is_absolute() for path in runtimes):
        pytest.skip("the compiler has no sanitizers")
    environment = {
        "CXX": COMPILER,
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    run("-c", "from ultrafastbert.ops.native import build; build.build()", **environment)
    environment["LD_PRELOAD"] = " ".join(path.strip() for path in runtimes)
    loaded = "from ultrafastbert.ops import native; assert native.available(); print(open('/proc/self/maps').read())"
    maps = run("-c", loaded, **environment)
    assert "libasan" in maps and str(tmp_path) in maps
    output = run("-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts=", "-k", OTHER, *TESTS, **environment)
    assert " passed" in output
