"""The native operator beyond the tests of all backends: dtypes and widths, registration with PyTorch, and building,
including failures."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ultrafastbert
from tests.ops.test_ops import make
from ultrafastbert import ops
from ultrafastbert.ops import native
from ultrafastbert.ops.native import build

pytestmark = pytest.mark.skipif(build.compiler_version() is None and not native.available(), reason="no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def reference(arguments):
    """The operator in float64 along the paths of `native`: small dtypes may choose differently near zero."""
    x, weight_in, bias_in, weight_out = [None if t is None else t.double() for t in arguments]
    path = ops.route(*arguments[:3], backend="native")  # (tokens, trees, levels)
    pre_activation = torch.einsum("nh,tmh->ntm", x, weight_in) + (0 if bias_in is None else bias_in)
    activation = torch.nn.functional.gelu(pre_activation)
    on_path = torch.zeros_like(activation).scatter_(-1, path, 1.0)
    return torch.einsum("ntm,tmh->nh", activation * on_path, weight_out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_float64_at_every_width(dtype):
    precision = {torch.float32: 1e-6, torch.float64: 1e-14}.get(dtype, torch.finfo(dtype).eps)
    tolerance = {"rtol": 4 * precision, "atol": 2 * precision}
    for width in [*range(1, 71), 127, 128, 129, 255, 768]:
        arguments = make((5,), width, 2, 3, dtype=dtype, bias=width % 2 == 0, seed=width)
        output = ops.fff(*arguments, backend="native")
        torch.testing.assert_close(output.double(), reference(arguments), **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_small_dtypes(dtype):
    """They agree with float64 along the same paths, to the precision of the dtype."""
    arguments = [t.requires_grad_() for t in make((300,), 40, 2, 4, dtype=dtype)]
    upstream = torch.randn(300, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(ops.fff(*arguments, backend="native"), arguments, upstream)
    expected = torch.autograd.grad(reference(arguments), arguments, upstream.double())
    for gradient, truth in zip(gradients, expected, strict=True):
        scale = truth.double().abs().max()
        torch.testing.assert_close(gradient / scale, truth / scale, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_rounds_like_pytorch():
    """Ties, infinity and NaN in the output of a layer of one neuron with an activation near 4."""
    for dtype in (torch.bfloat16, torch.float16):
        weight_out = torch.tensor([1.0, 3e38, -3e38, float("nan"), float("inf"), 1e-30, 0.5]).to(dtype).view(1, 1, -1)
        x = torch.full((1, 7), 4.0, dtype=dtype)
        weight_in = torch.full((1, 1, 7), 1.0 / 7).to(dtype)
        output = ops.fff(x, weight_in, None, weight_out, backend="native")
        expected = ops.fff(x, weight_in, None, weight_out, backend="reference")
        torch.testing.assert_close(output, expected, equal_nan=True)


def test_gelu_has_float_precision():
    z = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([0.0, -0.0, 1e-30, 200.0, -200.0])])
    z.requires_grad_()
    one = torch.ones(1, 1, 1)
    output = ops.fff(z.view(-1, 1), one, None, one, backend="native").flatten()
    output.sum().backward()
    truth = z.detach().double().requires_grad_()
    expected = torch.nn.functional.gelu(truth)
    expected.sum().backward()
    assert (output - expected).abs().max() < 1e-6
    assert (z.grad - truth.grad).abs().max() < 1e-6


def test_results_do_not_depend_on_other_tokens_or_threads():
    """Outputs and gradients are equal to the last bit."""
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            arguments = [t.requires_grad_() for t in make((1000,), 200, 2, 7)]
            output = ops.fff(*arguments, backend="native")
            results.append([output, *torch.autograd.grad(output.square().sum(), arguments)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    x, *weights = arguments
    alone = torch.cat([ops.fff(x[i : i + 1], *weights, backend="native") for i in range(50)])
    assert torch.equal(alone, results[0][0][:50])


def test_a_nan_token_goes_left():
    x, weight_in, bias_in, _ = make((3,), 8, 2, 3)
    path = ops.route(x * float("nan"), weight_in, bias_in, backend="native")
    assert torch.equal(path, torch.tensor([0, 1, 3, 7]).expand(3, 2, 4))


def test_frozen_weights_and_frozen_input():
    arguments = make((20,), 16, 2, 4)
    arguments[0].requires_grad_()
    expected = torch.autograd.grad(ops.fff(*arguments, backend="reference").sum(), arguments[0])
    output = torch.autograd.grad(ops.fff(*arguments, backend="native").sum(), arguments[0])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    x, *weights = [t.detach() for t in arguments]
    gradients = []
    for backend in ("reference", "native"):
        weight_out = weights[2].clone().requires_grad_()
        ops.fff(x, *weights[:2], weight_out, backend=backend).square().sum().backward()
        gradients.append(weight_out.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(dtype, gradients):
    assert native.available()
    x, weight_in, bias_in, weight_out = [t.requires_grad_(gradients) for t in make((6,), 24, 2, 3, dtype=dtype)]
    operators = torch.ops.ultrafastbert
    for operator in (operators.fff, operators.fff_with_path):
        torch.library.opcheck(operator.default, (x, weight_in, bias_in, weight_out))
        torch.library.opcheck(operator.default, (x, weight_in, None, weight_out))
    torch.library.opcheck(operators.route.default, (x.detach(), weight_in.detach(), bias_in.detach()))


def test_exports_with_any_number_of_tokens():
    layer = ultrafastbert.FFF(24, 5, trees=2, backend="native").eval()
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(layer, (torch.randn(4, 24),), dynamic_shapes={"x": {0: tokens}})
    x = torch.randn(9, 24)
    assert torch.equal(program.module()(x), layer(x))
    assert torch.ops.ultrafastbert.fff.default in {node.target for node in program.graph.nodes}


def test_compiled_layer_with_gradients():
    layer = ultrafastbert.FFF(24, 5, backend="native")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 24)
    with torch.inference_mode():
        assert torch.equal(compiled(x), layer(x))
    gradients = [torch.autograd.grad(f(x).square().sum(), layer.parameters()) for f in (layer, compiled)]
    for expected, gradient in zip(*gradients, strict=True):
        assert torch.equal(gradient, expected)


def test_unsupported_derivatives_raise():
    arguments = [t.requires_grad_() for t in make((3,), 8, 1, 2)]
    (gradient,) = torch.autograd.grad(ops.fff(*arguments, backend="native").sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()
    x, *weights = [t.detach() for t in arguments]
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda x: ops.fff(x, *weights, backend="native"), (x,), (x,))


def test_operator_checks_its_arguments():
    assert native.available()
    x, weight_in, bias_in, weight_out = make((3,), 8, 2, 2)
    fff = torch.ops.ultrafastbert.fff
    for wrong, error, message in (
        ((x[:, :7], weight_in, bias_in, weight_out), ValueError, "x has shape"),
        ((x, weight_in[:, :6], bias_in, weight_out), ValueError, "weight_in has 6 nodes"),
        ((x, weight_in, bias_in[:1], weight_out), ValueError, "bias_in has shape"),
        ((x, weight_in, bias_in, weight_out[:1]), ValueError, "weight_out has shape"),
        ((x, weight_in, bias_in.double(), weight_out), TypeError, "bias_in has dtype"),
        (tuple(t.to(torch.float8_e4m3fn) for t in (x, weight_in, bias_in, weight_out)), TypeError, "x has dtype"),
    ):
        with pytest.raises(error, match=message):
            fff(*wrong)


# ---------------------------------------------------------------------------------------------------- building

# A compiler that sleeps and then copies the library that has already been built.
COMPILER = """#!/bin/sh
case "$*" in *--version*) echo test compiler; exit;; esac
echo run >> {log}
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
sleep {seconds}
cp {library} "$out"
"""
USE = """
import torch
from ultrafastbert import FFF, ops
layer = FFF(8, 11)
with torch.inference_mode():
    print(ops.choose_backend(torch.randn(2, 8), layer.weight_in), layer(torch.randn(2, 8)).shape)
"""


@pytest.fixture
def environment(tmp_path):
    """Makes the environment of a process with the compiler above and an empty build directory."""

    def make_environment(seconds=0.5, **changes):
        compiler = tmp_path / "compiler"
        compiler.write_text(COMPILER.format(log=tmp_path / "log", library=build.build(), seconds=seconds))
        compiler.chmod(0o755)
        return os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "build"), "CXX": str(compiler)} | changes

    return make_environment


def start(environment, program=USE):
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_processes_that_start_together_build_once(environment, tmp_path):
    processes = [start(environment()) for _ in range(3)]
    outcomes = [process.communicate() for process in processes]
    assert [out for out, _ in outcomes] == ["native torch.Size([2, 8])\n"] * 3, outcomes
    assert (tmp_path / "log").read_text() == "run\n" * 2  # compile and link
    assert sum("building the native operator" in error for _, error in outcomes) == 1
    (directory,) = (tmp_path / "build").iterdir()
    assert sorted(path.suffix for path in directory.iterdir()) == ["", ".so"]  # the lock and the library


@pytest.mark.slow
def test_a_killed_build_does_not_block_the_next_one(environment, tmp_path):
    builder = start(environment(seconds=60))
    while not (tmp_path / "log").exists():
        time.sleep(0.05)
        assert builder.poll() is None
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    out, error = start(environment()).communicate(timeout=60)
    assert out.startswith("native"), error
    (directory,) = (tmp_path / "build").iterdir()
    assert not list(directory.glob("building-*"))


@pytest.mark.slow
@pytest.mark.parametrize("compiler, words", [("/nowhere/c++", "install g++"), ("false", "exited with code 1")])
def test_without_a_compiler_it_warns_once_and_uses_gather(environment, compiler, words):
    program = USE + "layer(torch.randn(2, 8)); layer(torch.randn(2, 8))"
    out, error = start(environment(CXX=compiler), program).communicate()
    assert out == "gather torch.Size([2, 8])\n", error
    assert error.count("UserWarning") == 1 and words in error and "'gather'" in error
    program = "from ultrafastbert import FFF; import torch; FFF(8, 2, backend='native')(torch.randn(2, 8))"
    process = start(environment(CXX=compiler), program)
    assert words in process.communicate()[1] and process.returncode == 1


@pytest.mark.slow
def test_an_existing_library_needs_no_compiler(environment):
    command = [sys.executable, "-m", "ultrafastbert.ops.native.build"]
    built = subprocess.run(command, env=environment(seconds=0), capture_output=True, text=True, check=True)
    library, flags = built.stdout.splitlines()
    assert Path(library).exists() and "-march=native" in flags and "Warning" not in built.stderr
    out, error = start(environment(CXX="/nowhere/c++")).communicate()
    ours = [line for line in error.splitlines() if "No CUDA runtime is found" not in line]  # PyTorch built for CUDA
    assert out.startswith("native") and not ours


def test_importing_builds_nothing(environment, tmp_path):
    _, error = start(environment(), "import ultrafastbert").communicate()
    assert not error and not (tmp_path / "build").exists()


def test_another_machine_gets_another_build(monkeypatch):
    here = build.build_directory()
    monkeypatch.setattr(build, "_processor", lambda: "another processor")
    elsewhere = build.build_directory()
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    assert len({here, elsewhere, build.build_directory()}) == 3


def damage_by(kind, content):
    """The content of a file truncated to a fraction of its size, or with one bit changed."""
    if kind == "bit":
        place = len(content) // 3
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    return content[: int(kind * len(content))]


@pytest.mark.parametrize("damage", [0, 1e-5, 0.5, 0.999, "bit"])
def test_a_damaged_library_is_built_again(environment, monkeypatch, tmp_path, damage):
    for name, value in environment(seconds=0).items():
        monkeypatch.setenv(name, value)
    library = build.build()
    content = library.read_bytes()
    library.write_bytes(damage_by(damage, content))
    assert build.build().read_bytes() == content
    assert (tmp_path / "log").read_text() == "run\n" * 4
    assert build.build().read_bytes() == content  # and only once
    assert (tmp_path / "log").read_text() == "run\n" * 4
    assert len(list(library.parent.glob("*.so"))) == 1


def test_a_damaged_library_is_not_loaded_without_a_compiler(environment, monkeypatch):
    for name, value in environment(seconds=0).items():
        monkeypatch.setenv(name, value)
    library = build.build()
    library.write_bytes(library.read_bytes()[:-1000])
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="needs a C\\+\\+ compiler"):
        build.build()


@pytest.mark.slow
def test_a_process_survives_a_truncated_library(environment, tmp_path):
    """The system kills a process that uses memory beyond the end of a library's file."""
    assert start(environment(seconds=0)).communicate()[0].startswith("native")
    (library,) = (tmp_path / "build").glob("*/*.so")
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    process = start(environment(seconds=0))
    assert process.communicate()[0].startswith("native") and process.returncode == 0
