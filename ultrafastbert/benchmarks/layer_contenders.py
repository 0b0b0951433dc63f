"""The layers that the benchmark of layers times: ordinary layers, and trees by backend, compiled or not."""

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn

from ultrafastbert import FFF
from ultrafastbert.benchmarks.harness import TOO_LARGE, Case, Contender, Layer, Ready, layer_call, typical_error
from ultrafastbert.utils.sizes import DenseSize, TreeSize

if TYPE_CHECKING:
    from ultrafastbert.benchmarks.layer import LayerArguments

MAX_GATHERED_BYTES = 2**31
"""What `gather` may copy of the weights for one level; cases above are skipped."""
MAX_NEURONS = {"cpu": 2**24, "cuda": 2**32}
"""Neurons times tokens, for backends that compute all neurons; cases above are skipped."""
COMPARED = 16
"""The number of tokens whose outputs are compared with the reference."""


class OriginalTrees(FFF):
    """Trees as the paper's training code evaluates them: every neuron, times a mask of zeros and ones.

    Source: arXiv 2311.10770, section 2 and algorithm 1.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluates the trees: `(..., hidden_size)` -> `(..., hidden_size)`."""
        trees, nodes, _ = self.weight_in.shape
        bias = None if self.bias_in is None else self.bias_in.flatten()
        pre_activation = nn.functional.linear(x, self.weight_in.flatten(0, 1), bias).unflatten(-1, (trees, nodes))
        with torch.no_grad():
            on_path = torch.zeros_like(pre_activation)
            node = torch.zeros_like(pre_activation[..., :1], dtype=torch.long)  # (tokens, trees, 1)
            for _ in range(self.depth + 1):
                on_path.scatter_(-1, node, 1.0)
                right = pre_activation.gather(-1, node) > 0
                node = (2 * node + 1 + right).clamp(max=nodes - 1)  # leaves have no children
        activation = nn.functional.gelu(pre_activation) * on_path
        return activation.flatten(-2) @ self.weight_out.flatten(0, 1)


def contenders(arguments: "LayerArguments", case: Case) -> list[Contender]:
    """The contenders of a case, ordinary layers first; in one with a depth, a tree and a layer as large, to plot."""
    on_gpu = arguments.device == "cuda"
    backends = dict.fromkeys(arguments.backends + arguments.compiled_backends)
    listed: list[tuple[str, TreeSize | DenseSize, str, bool]]
    if "depth" in case:
        tree, backend = TreeSize(1, case["depth"]), "blocked" if on_gpu else "native"
        listed = [("ordinary layer", DenseSize(tree.neurons), "", on_gpu), ("one tree", tree, backend, on_gpu)]
    else:
        listed = [(f"dense-{n}{', compiled' * on_gpu}", DenseSize(n), "", on_gpu) for n in arguments.dense]
        for size, backend in itertools.product(arguments.sizes, backends):
            if backend in arguments.backends:
                listed.append((f"{size} {backend}", TreeSize.parse(size), backend, False))
            if backend in arguments.compiled_backends and size in arguments.compiled:
                listed.append((f"{size} {backend}, compiled", TreeSize.parse(size), backend, True))
    dtype = getattr(torch, case["dtype"])
    torch.manual_seed(0)
    x = torch.randn(case["tokens"], arguments.hidden_size, dtype=dtype, device=arguments.device)
    if arguments.one_path:
        x = x[:1].repeat(len(x), 1)
    x.requires_grad_(arguments.backward)
    grad = torch.randn_like(x) if arguments.backward else None

    def contender(name: str, size: TreeSize | DenseSize, backend: str, compiled: bool) -> Contender:
        def set_up() -> Ready:
            layer = _build(arguments, size, backend).to(dtype).requires_grad_(arguments.backward)
            reference = _build(arguments, size, "reference").float().requires_grad_(False)
            reference.load_state_dict(layer.state_dict())
            first = x[:COMPARED].detach().float().requires_grad_(arguments.backward)
            expected = layer_call(reference, first, None if grad is None else grad[:COMPARED].float())()
            function: Layer = layer
            if compiled:
                # Layers of one class share their code, which PyTorch would stop compiling after a few of them.
                torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
                function = torch.compile(layer, dynamic=False, mode=arguments.compile_mode)
            timed = layer_call(function, x, grad, list(layer.parameters()))
            return Ready(timed, lambda output: typical_error(output[:COMPARED], expected))

        too_large = False
        if isinstance(size, TreeSize) and backend == "gather":
            too_large = size.trees * x.nbytes > MAX_GATHERED_BYTES
        elif backend in ("dense", "original") and size.used < size.neurons:
            too_large = len(x) * size.neurons > MAX_NEURONS[arguments.device]
        return Contender(name, set_up, case["dtype"], skip=TOO_LARGE if too_large else "")

    return [contender(*given) for given in listed]


def _build(arguments: "LayerArguments", size: TreeSize | DenseSize, backend: str) -> nn.Module:
    width = arguments.hidden_size
    with torch.device(arguments.device):
        if isinstance(size, DenseSize):  # without biases, as in the encoder
            expand, contract = nn.Linear(width, size.neurons, bias=False), nn.Linear(size.neurons, width, bias=False)
            return nn.Sequential(expand, nn.GELU(), contract)
        if backend == "original":
            return OriginalTrees(width, size.depth, size.trees)
        return FFF(width, size.depth, size.trees, backend=backend)
