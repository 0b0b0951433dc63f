"""Measures trees on the first GPU, and says what they are worth there.

    python scripts/measure_gpu.py --quick      # a verdict in about ten minutes
    python scripts/measure_gpu.py              # all rows of docs/benchmarks/gpu.md

First come the tests that need a GPU, then benchmarks, each a command that is printed and can be run alone. What fails
is listed at the end, and the others still run. Benchmarks whose JSON is in the output directory are complete and are
not measured again; an interrupted one resumes. Options that this program does not know are for `benchmark training`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DENSE, TREE = "dense-3072", "1x11"
BATCHES = (1024, 512, 256, 128, 64, 32)
"""Sequences of 128 tokens in the search for the largest batch."""

WIDE = ["--sizes", "[1x11,1x12,1x13,1x14,1x15]", "--tokens", "[65536]", "--depths", "[]"]
ONE = ["--sizes", "[1x11]", "--tokens", "[65536]", "--depths", "[]"]
FULL = {
    "forward": ["layer", *WIDE],
    "backward": ["layer", *WIDE, "--backward", "true"],
    "training": ["training"],
    "one-path": ["layer", *ONE, "--one_path", "true"],
    "one-path-backward": ["layer", *ONE, "--one_path", "true", "--backward", "true"],
    "graphs": ["layer", "--sizes", "[1x11]", "--depths", "[]", "--tokens", "[1,16,256,4096]"]
    + ["--compile_mode", "reduce-overhead"],
    "sizes": ["layer"],
    "sizes-backward": ["layer", "--backward", "true"],
}
"""The benchmarks of docs/benchmarks/gpu.md, by their directories."""
QUICK = {
    "layer-backward": ["layer", *ONE, "--backward", "true", "--dense", "[3072]", "--seconds", "0.5"],
    "layer-backward-one-path": ["layer", *ONE, "--backward", "true", "--one_path", "true", "--dense", "[3072]"]
    + ["--seconds", "0.5"],
}


def main() -> None:
    """Runs everything; exits with 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a verdict in about ten minutes instead of all tables")
    parser.add_argument("--device", default="cuda", help="cpu tries out this script (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("out/gpu"), help="(default: %(default)s)")
    arguments, training = parser.parse_known_args()  # further options are for `benchmark training`
    measurement = Measurement(arguments.device, arguments.output_dir.absolute(), training)
    measurement.test()
    if arguments.quick:
        measurement.quick()
    else:
        for name, options in FULL.items():
            measurement.benchmark(name, options)
    for failure in measurement.failures:
        print(f"failed: {failure}")
    sys.exit(1 if measurement.failures else 0)


class Measurement:
    """The commands on one device, and which of them failed."""

    def __init__(self, device: str, output: Path, training: list[str]):
        self.device, self.output, self.training = device, output, training
        self.failures: list[str] = []
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "0"}

    def run(self, *command: str) -> bool:
        """Runs a Python command from the root of the project; whether it succeeded."""
        print(f"\n$ python {shlex.join(command)}", flush=True)
        success = subprocess.run([sys.executable, *command], cwd=ROOT, env=self.environment).returncode == 0
        if not success:
            self.failures.append(f"python {shlex.join(command)}")
        return success

    def test(self) -> None:
        """The tests that need a GPU; a failure does not keep the benchmarks from running."""
        self.run("-m", "pytest", "-q", "-o", "addopts=", "tests/ops/test_on_gpu.py")

    def benchmark(self, name: str, options: list[str]) -> dict:
        """The record of a benchmark, {} if it failed."""
        kind, *options = options
        file = self.output / name / f"{kind}.json"
        if not file.exists():
            if kind == "training":
                options += self.training
            place = ["--device", self.device, "--output_dir", str(file.parent)]
            self.run("-m", "ultrafastbert", "benchmark", kind, *options, *place)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def quick(self) -> None:
        """The layer under even and most uneven routing; training steps of the recipe's batch and of the largest."""
        for name, options in QUICK.items():
            self.benchmark(name, options)
        recipe = self.steps(128)
        largest = next(filter(None, map(self.steps, BATCHES)), {})
        print()
        for title, results in (("the recipe's batch", recipe), ("the largest batch", largest)):
            print(f"{title}: {verdict(results)}")

    def steps(self, sequences: int) -> dict:
        """The results of training steps of both models, {} if not both could be timed."""
        options = ["training", "--models", f"[{DENSE},{TREE}]", "--sequences", str(sequences)]
        options += ["--sequence_length", "128", "--seconds", "5"]
        record = self.benchmark(f"training-{sequences}", options)
        results = {result["name"]: result for result in record.get("results", [])}
        if results.keys() != {DENSE, TREE}:
            return {}
        return {**results, "sequences": sequences, "device": next(iter(record["environment"].values()))}


def verdict(results: dict) -> str:
    """What a user wants to know, in a sentence."""
    if not results:
        return f"{DENSE} and {TREE} could not both be timed"
    dense, tree = results[DENSE], results[TREE]
    memory = "" if tree["memory"] is None else f", memory {tree['memory'] / dense['memory']:.2f} times"
    return (
        f"{TREE} trains {dense['median'] / tree['median']:.2f} times as fast as {DENSE} on {results['device']}"
        f" ({results['sequences']} sequences of 128 tokens a step, backend {tree['backend']}{memory})"
    )


if __name__ == "__main__":
    main()
