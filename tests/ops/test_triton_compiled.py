"""The Triton kernels compiled for GPUs, without one: they fit into registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
KERNELS = {"forward", "backward_tokens", "backward_weights", "add_chunks"}
SHARED = 99 * 1024  # bytes that a program may use on the GPUs with the least, of capability 8.6, 8.9 and 12.0


def compile_triton(*cases):
    """The lines that `compile_triton` prints; it must not inherit the choice of the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.compile_triton", *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_kernels_compile_without_spills():
    """Of a batch of the recipe's size for each GPU; and the other tiles, of smaller batches and of float32."""
    cases = [f"{capability}:bfloat16:65536" for capability in (80, 86, 89, 90, 100, 120)]
    cases += ["80:bfloat16:8192", "80:bfloat16:512", "80:float32:65536"]
    lines = compile_triton(*cases)
    for case in cases:
        assert {line["kernel"] for line in lines if line["case"] == case} == KERNELS
    for line in lines:
        assert line["spilled"] <= (64 if "float32" in line["case"] else 0), line
        assert line["shared"] <= SHARED and line["registers"] <= 255, line


@pytest.mark.slow
def test_compilers_see_the_kernels_and_the_host_reads_no_value():
    """A budget of launches, and of the memory that a layer takes until its backward pass."""
    [traced] = compile_triton("trace")
    called = traced["called"]
    # forward, backward_tokens, backward_weights twice, add_chunks for two weights and a bias; no other products
    assert called.pop("triton_kernel_wrapper_functional") == 7
    assert called.pop("aten.mm.default") == 1
    assert not [name for name in called if any(word in name for word in ("triton", "copy_", "mm", "scalar_dense"))]
    assert traced["bytes_per_token"] < 1536 + 200  # the token itself, in bfloat16; dense-3072 keeps 13,824
