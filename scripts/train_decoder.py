"""Trains small decoders with different feedforward layers on a text, and lets each of them write.

    python scripts/train_decoder.py --source book.txt --sizes '[dense-512, 1x8, 1x5x32, none]'

The decoder is transformers' Llama with random weights, whose tokens are the bytes of the text. `replace_feedforward`
puts a layer of each size into it; trees with leaves grow after a tenth of the steps. All sizes train on the same bytes
in the same order; the last tenth of the text is for validation.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ultrafastbert import HardFFF, grow_trees, replace_feedforward
from ultrafastbert.cli import parse_arguments
from ultrafastbert.inspection.loading import read_texts
from ultrafastbert.runs.environment import environment
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import write_atomically
from ultrafastbert.utils.progress import track
from ultrafastbert.utils.sizes import parse_size
from ultrafastbert.utils.tables import markdown_table
from ultrafastbert.utils.validation import NOT_EMPTY, POSITIVE, Rule, check, check_fields

BYTES = 256
GROW_AT = 0.1
"""Fraction of the steps after which trees with leaves make their decisions."""
BALANCE_RATE = 0.05
"""How fast their thresholds then follow the tokens, in standard deviations a step; see `HardFFF.balance`."""


@dataclass
class DecoderArguments:
    """Which decoders are trained, and how."""

    source: str = ""
    """A file of text: lines (.txt), objects or rows with a field text (.jsonl, .parquet), also compressed."""
    sizes: list[str] = field(default_factory=lambda: ["dense-512", "1x8", "1x5x32", "none"])
    """Sizes of the feedforward layers, as --model.fff of pretraining has them."""
    num_hidden_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width."""
    num_attention_heads: int = 4
    """Attention heads, a divisor of the width."""
    steps: int = 300
    """Steps of AdamW for each size."""
    batch_size: int = 16
    """Sequences in a step."""
    sequence_length: int = 128
    """Bytes in a sequence."""
    lr: float = 2e-3
    """Learning rate at its peak."""
    validation_batches: int = 32
    """Batches of the validation loss, at most."""
    prompt: str = "It was "
    """What each decoder continues."""
    length: int = 160
    """How far. [bytes]"""
    output_dir: str = "out/decoder"
    """Where decoder.md and decoder.json are written."""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "source", "sizes", "prompt", "output_dir")
        check_fields(self, POSITIVE, "num_hidden_layers", "hidden_size", "num_attention_heads", "steps", "batch_size")
        check_fields(self, POSITIVE, "sequence_length", "lr", "validation_batches", "length")
        divisor = Rule(lambda heads: self.hidden_size % heads == 0, f"a divisor of hidden_size, {self.hidden_size}")
        check("num_attention_heads", self.num_attention_heads, divisor)
        for size in self.sizes:
            parse_size(size, "sizes")


def read_bytes(arguments: DecoderArguments) -> tuple[Tensor, Tensor]:
    """The text's bytes for training and for validation, uint8 `(bytes,)` each.

    Raises:
        UserError: a file cannot be read, or there is too little text.
    """
    text = "\n".join(text.rstrip("\n") for text in read_texts([arguments.source], None)).encode()
    least = 10 * arguments.batch_size * (arguments.sequence_length + 1)
    if len(text) < least:
        raise UserError(f"source has {len(text):,} bytes; it should have at least {least:,}")
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return data[: -len(data) // 10], data[-len(data) // 10 :]


def build_decoder(size: str, arguments: DecoderArguments) -> LlamaForCausalLM:
    """A decoder with random weights and feedforward layers of this size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=BYTES,
        hidden_size=arguments.hidden_size,
        intermediate_size=4 * arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        max_position_embeddings=max(arguments.sequence_length, len(arguments.prompt.encode()) + arguments.length),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    replace_feedforward(model, "model.layers.*.mlp", size)
    return model


def random_batch(data: Tensor, arguments: DecoderArguments, seed: int) -> Tensor:
    """Sequences from random places, int64 `(batch_size, sequence_length)`: a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    length = arguments.sequence_length
    starts = torch.randint(len(data) - length, (arguments.batch_size, 1), generator=generator)
    return data[starts + torch.arange(length)].long()


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean cross-entropy of the next bytes, in nats."""
    return model(input_ids=batch, labels=batch).loss


def train(model: LlamaForCausalLM, data: Tensor, arguments: DecoderArguments, name: str) -> float:
    """Trains a decoder and returns the seconds that its steps took."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, arguments.lr, betas=(0.9, 0.98), weight_decay=0.01)
    trees = [module for module in model.modules() if isinstance(module, HardFFF)]
    grows_at = round(GROW_AT * arguments.steps)
    model.train()
    seconds = 0.0
    for step in track(range(arguments.steps), name, "step"):
        if step == grows_at:
            sample = [random_batch(data, arguments, seed) for seed in range(arguments.steps)]
            grow_trees(model, sample, optimizers=[optimizer])
            for tree in trees:
                tree.leaf_counts = torch.zeros(2**tree.depth)
        start = time.perf_counter()
        part = step / arguments.steps
        optimizer.param_groups[0]["lr"] = arguments.lr * min(1.0, 20 * part + 0.01) * (1 - part)
        loss_of(model, random_batch(data, arguments, step)).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= grows_at:
            for tree in trees:
                tree.balance(BALANCE_RATE)
        seconds += time.perf_counter() - start
    return seconds


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, data: Tensor, arguments: DecoderArguments) -> float:
    """The loss on validation text, in bits per byte."""
    model.eval()
    size = arguments.batch_size * arguments.sequence_length
    count = min(len(data) // size, arguments.validation_batches)
    batches = data[: count * size].long().view(count, arguments.batch_size, arguments.sequence_length)
    return sum(loss_of(model, batch).item() for batch in batches) / count / math.log(2)


def write(model: LlamaForCausalLM, arguments: DecoderArguments) -> str:
    """The prompt and its continuation, drawn byte by byte with temperature 0.7 and seed 0."""
    torch.manual_seed(0)
    prompt = torch.tensor([list(arguments.prompt.encode())])
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": True, "temperature": 0.7, "top_k": 0}
    # transformers' type of self has attributes that its models lack.
    output = model.generate(prompt, max_new_tokens=arguments.length, **options)  # pyright: ignore[reportAttributeAccessIssue]
    return bytes(output[0].tolist()).decode(errors="replace")


def main(arguments: DecoderArguments) -> None:
    """Trains all decoders, prints a table and their texts, and writes both.

    Raises:
        UserError: a file cannot be read, or there is too little text.
    """
    training, validation = read_bytes(arguments)
    results = []
    for size in arguments.sizes:
        model = build_decoder(size, arguments)
        seconds = train(model, training, arguments, size)
        loss, text = evaluate(model, validation, arguments), write(model, arguments)
        results.append({"size": size, "bits_per_byte": loss, "seconds": seconds, "text": text})
    rows = [
        (r["size"], parse_size(r["size"]).used, f"{r['bits_per_byte']:.3f}", f"{r['seconds']:.0f}") for r in results
    ]
    table = markdown_table(("size", "neurons used", "validation loss, bits per byte", "training, seconds"), rows)
    texts = "\n\n".join(f"**{r['size']}**\n\n```\n{r['text']}\n```" for r in results)
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "arguments": asdict(arguments),
        "environment": environment(torch.device("cpu"), "transformers"),
        "results": results,
    }
    write_atomically(output / "decoder.json", json.dumps(content, indent=1) + "\n")
    write_atomically(output / "decoder.md", f"{table}\n\n{texts}\n")
    print(f"\n{table}\n\n{texts}\n\nwritten: {output / 'decoder.md'}, {output / 'decoder.json'}")


if __name__ == "__main__":
    try:
        main(parse_arguments(DecoderArguments, sys.argv[1:], "train_decoder.py", "Trains small decoders on a text."))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
