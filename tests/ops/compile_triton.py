"""Compiles the Triton kernels for GPUs that are not at hand, as `ops.triton` launches them, and prints what they take.

A program of its own because Triton's interpreter, in which the other tests run, is chosen when Triton is imported:

    python -m tests.ops.compile_triton 80:bfloat16:65536 90:bfloat16:65536
    python -m tests.ops.compile_triton trace

Prints a line of JSON for each kernel: registers, bytes of spilled registers, bytes of shared memory. For `trace`, what
`torch.compile` sees of a forward and backward pass: how often each operator is called, and the bytes that are kept for
the backward pass for each token.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from types import SimpleNamespace

import torch
import triton
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from ultrafastbert import ops
from ultrafastbert.ops import triton as backend

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def launches(dtype, tokens, hidden=768, trees=1, depth=11):
    """What a forward and backward pass launches: kernels, arguments and constants."""
    recorded = []
    backend._launch = lambda kernel, grid, *arguments, **constants: recorded.append((kernel, arguments, constants))
    shapes = ((tokens, hidden), (trees, 2 ** (depth + 1) - 1, hidden), (trees, 2 ** (depth + 1) - 1))
    x, weight, bias = (torch.empty(*shape, dtype=dtype, device="meta").requires_grad_() for shape in shapes)
    ops.fff(x, weight, bias, weight.detach().requires_grad_(), backend="triton").sum().backward()
    return recorded


def compile_for(capability, kernel, arguments, constants):
    """Registers, bytes spilled, and bytes of shared memory of a kernel."""
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    values = dict(zip((name for name in kernel.arg_names if name not in constants), arguments, strict=True))
    signature = {
        name: "constexpr"
        if name in constants
        else TYPES[values[name].dtype]
        if isinstance(values[name], torch.Tensor)
        else "i32"
        for name in kernel.arg_names
    }
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name in values}
    fixed = {places[name]: value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        arch = sm_arch_from_capability(capability)
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={arch}", file.name, "-o", "/dev/null"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {name: int(re.findall(rf"(\d+) {text}", output)[0]) for name, text in REPORTED.items()}
    return {**found, "shared": compiled.metadata.shared}


REPORTED = {"registers": "registers", "spilled": "bytes spill stores"}


def trace(tokens=4096, hidden=768, depth=11):
    """The operators of a forward and backward pass and their numbers, and the bytes kept for the backward pass.

    Tensors have no values while they are traced, so that an operator whose value the host would read raises an error.
    """
    backend.runs_on = lambda device: True
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32))
    triton.runtime.driver.set_active(target)  # without it, kernels are taken to write to all of their arguments
    nodes = 2 ** (depth + 1) - 1
    shapes = ((tokens, hidden), (1, nodes, hidden), (1, nodes), (1, nodes, hidden))
    arguments = [torch.empty(shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes]

    def evaluate(*tensors):
        return (ops.fff(*tensors, backend="triton").square(),)

    graph = aot_export_joint_simple(evaluate, arguments, trace_joint=True).graph
    called = Counter(str(node.target) for node in graph.nodes if node.op == "call_function")
    kept = []

    def keep(tensor):
        if tuple(tensor.shape) not in shapes[1:]:
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ops.fff(*(torch.empty(shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes), backend="triton")
    return {"called": called, "bytes_per_token": sum(kept) / tokens}


if __name__ == "__main__":
    for case in sys.argv[1:]:
        if case == "trace":
            print(json.dumps(trace()), flush=True)
            continue
        capability, dtype, tokens = case.split(":")
        for kernel, arguments, constants in launches(getattr(torch, dtype), int(tokens)):
            facts = compile_for(int(capability), kernel, arguments, constants)
            print(json.dumps({"case": case, "kernel": kernel.__name__, **facts}), flush=True)
