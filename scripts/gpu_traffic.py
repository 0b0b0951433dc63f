"""What the Triton kernels of a tree move and compute, and how long that takes at least on GPUs not at hand.

    python scripts/gpu_traffic.py --tokens 65536 --hidden 768 --size 1x11

Prints bytes and operations of each kernel of a forward and backward pass in bfloat16, and estimates of its time for
each GPU in `ultrafastbert.utils.hardware.PEAKS`, beside those of a dense layer. The estimates assume that a kernel
gets 80 % of the bandwidth of memory or 40 % of the peak of matrix products, whichever is slower, and the dense layer,
whose products are large, 75 % of that peak. They are no measurements: `ultrafastbert benchmark training` measures.
"""

import argparse
from typing import NamedTuple

import torch

from ultrafastbert.ops import triton
from ultrafastbert.utils.hardware import PEAKS, Peak
from ultrafastbert.utils.sizes import TreeSize

SIZE = 2  # bytes of a number in bfloat16
BANDWIDTH, PRODUCTS, LARGE_PRODUCTS = 0.8, 0.4, 0.75  # the fractions of the peaks that the estimates assume


class Work(NamedTuple):
    """What a kernel does: bytes moved to and from memory, floating-point operations."""

    name: str
    bytes: float
    flops: float

    def seconds(self, peak: Peak) -> float:
        """The estimate for a GPU."""
        return max(self.bytes / (BANDWIDTH * peak.bandwidth), self.flops / (PRODUCTS * peak.flops[torch.bfloat16]))


def tree_work(tokens: int, hidden: int, trees: int, depth: int) -> list[Work]:
    """The kernels of a forward and backward pass; weights are read from memory once, and then from the cache."""
    nodes = 2 ** (depth + 1) - 1
    x, weight = torch.empty(tokens, hidden, device="meta"), torch.empty(trees, nodes, hidden, device="meta")
    layout = triton.layout_of(x.bfloat16(), weight)
    rows, top, width = tokens * trees, trees * 2**layout.cut, layout.width
    one, all_rows = tokens * hidden * SIZE, rows * hidden * SIZE  # the tokens, and a copy for each tree
    weights, values = trees * nodes * hidden * SIZE, rows * width * SIZE
    sums = (rows // triton.CHUNK + layout.blocks) * width * hidden * 4
    product = 2 * rows * hidden * width
    return [
        Work("product with the top", one + tokens * top * SIZE, 2 * tokens * hidden * top),
        Work("walk and sort", tokens * top * SIZE + 60 * rows, 0),
        Work("forward", 2 * all_rows + 2 * weights + values, 2 * product),
        Work("backward_tokens", 2 * all_rows + 2 * weights + 3 * values, 2 * product),
        Work("backward_weights, twice", 2 * (all_rows + values + sums), 2 * product),
        Work("add_chunks, twice", 2 * (sums + weights), 0),
        Work("weights to bfloat16, gradients to float32", 4 * weights * 3, 0),
    ]


def dense_flops(tokens: int, hidden: int, neurons: int) -> float:
    """Of a forward and backward pass: two products forward, four backward."""
    return 12 * tokens * hidden * neurons


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=65536, help="tokens in a batch (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=768, help="width (default: %(default)s)")
    parser.add_argument("--size", default="1x11", help="TREESxDEPTH (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=3072, help="of the dense layer (default: %(default)s)")
    arguments = parser.parse_args()
    size = TreeSize.parse(arguments.size)
    work = tree_work(arguments.tokens, arguments.hidden, size.trees, size.depth)

    print("| kernel | MB | GFLOP |\n| --- | --- | --- |")
    for kernel in work:
        print(f"| {kernel.name} | {kernel.bytes / 1e6:,.0f} | {kernel.flops / 1e9:,.1f} |")
    print(f"| together | {sum(k.bytes for k in work) / 1e6:,.0f} | {sum(k.flops for k in work) / 1e9:,.1f} |")
    dense = dense_flops(arguments.tokens, arguments.hidden, arguments.neurons)
    print(f"| dense-{arguments.neurons} | | {dense / 1e9:,.0f} |\n")

    print(
        f"| estimate for | dense-{arguments.neurons}, ms | {arguments.size}, ms | ratio |\n| --- | --- | --- | --- |"
    )
    for name, peak in PEAKS.items():
        tree = sum(kernel.seconds(peak) for kernel in work)
        slow = dense / (LARGE_PRODUCTS * peak.flops[torch.bfloat16])
        print(f"| {name} | {1e3 * slow:.2f} | {1e3 * tree:.2f} | {slow / tree:.1f}x |")


if __name__ == "__main__":
    main()
