"""The original code's model, rewritten as functions of its configuration and its tensors, for comparison.

It shares nothing with the package: rows of query, key and value are interleaved by head, all neurons of all trees are
computed and masked, positions are columns, and averages include padding.
"""

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ARCH = {
    "architectures": ["ScriptableCrammedBERT"],
    "num_transformer_layers": 2,
    "hidden_size": 24,
    "intermed_type": "fff",
    "intermed_size": 2,
    "intermed_depth": 3,
    "hidden_dropout_prob": 0.1,
    "norm": "LayerNorm",
    "norm_eps": 1e-12,
    "norm_scheme": "pre",
    "nonlin": "GELU",
    "tie_weights": True,
    "decoder_bias": False,
    "sparse_prediction": 0.25,
    "loss": "cross-entropy",
    "objective_layout": "MLM",
    "embedding": {
        "vocab_size": 40,
        "pos_embedding": "scaled-sinusoidal",
        "dropout_prob": 0.1,
        "pad_token_id": 0,
        "max_seq_length": 12,
        "embedding_dim": 24,
        "normalization": True,
        "stable_low_precision": False,
    },
    "attention": {
        "type": "self-attention",
        "causal_attention": False,
        "num_attention_heads": 3,
        "dropout_prob": 0.2,
        "skip_output_projection": False,
        "qkv_bias": False,
        "rotary_embedding": False,
        "seq_op_in_fp32": False,
        "sequence_op": "torch-softmax",
    },
    "init": {"type": "normal", "std": 0.02},
    "ffn_layer_frequency": 1,
    "skip_head_transform": True,
    "use_bias": False,
    "final_norm": True,
    "num_labels": None,
    "classification_head": {
        "pooler": "avg",
        "include_ff_layer": True,
        "head_dim": 20,
        "nonlin": "Tanh",
        "classifier_dropout": 0.3,
    },
}


def config(head: str = "ScriptableLMForPreTraining", **options) -> dict:
    """The content of a config.json; options are dotted names in `arch`, dots written as `__`.

    As in the original, a classifier has the labels of the top level, two by default, whatever `arch.num_labels` is.
    """
    arch = copy.deepcopy(ARCH)
    if head == "ScriptableLMForSequenceClassification":
        arch["num_labels"] = 3
    for name, value in options.items():
        *groups, last = name.split("__")
        place = arch
        for group in groups:
            place = place[group]
        place[last] = value
    return {"model_type": "crammedBERT", "architectures": [head], "arch": arch}


def number_of_labels(config: dict) -> int:
    """As transformers computes it from the top level of a configuration."""
    return len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)


def state(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors for a configuration, large enough that every one of them matters to the output."""
    arch, generator = config["arch"], torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * (0.5 if len(shape) < 2 else shape[-1] ** -0.5)

    width, vocab = arch["hidden_size"], arch["embedding"]["vocab_size"]
    tensors = {
        "encoder.embedding.word_embedding.weight": normal(vocab, width) * 3,
        "encoder.embedding.pos_embedding.scale_factor": torch.tensor([0.7]),
        "encoder.embedding.norm.weight": 1 + normal(width),
        "encoder.embedding.norm.bias": normal(width),
        "encoder.final_norm.weight": 1 + normal(width),
        "encoder.final_norm.bias": normal(width),
    }
    for i in range(arch["num_transformer_layers"]):
        layer = {
            "norm1.weight": 1 + normal(width),
            "norm1.bias": normal(width),
            "norm2.weight": 1 + normal(width),
            "norm2.bias": normal(width),
            "attn.self_attention.query_key_value.weight": normal(3 * width, width),
            "attn.self_attention.norm_factor": torch.tensor(width / arch["attention"]["num_attention_heads"]).rsqrt(),
            "attn.dense.weight": normal(width, width),
        }
        if arch.get("intermed_type", "ff") == "fff":
            neurons = arch["intermed_size"] * (2 ** (arch["intermed_depth"] + 1) - 1)
            layer["ffn.linear_in.weight"] = normal(neurons, width)
            layer["ffn.linear_in.bias"] = normal(neurons)
            layer["ffn.linear_out.weight"] = normal(width, neurons) * 2
        else:
            layer["ffn.dense_in.weight"] = normal(arch["intermed_size"], width)
            layer["ffn.dense_out.weight"] = normal(width, arch["intermed_size"])
        tensors |= {f"encoder.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    if config["architectures"] == ["ScriptableLMForPreTraining"]:
        tensors["decoder.weight"] = tensors["encoder.embedding.word_embedding.weight"].clone()
    else:
        hidden = arch["classification_head"]["head_dim"]
        tensors["pooler.dense.weight"] = normal(hidden, width)
        tensors["pooler.dense.bias"] = normal(hidden)
        tensors["head.weight"] = normal(number_of_labels(config), hidden)
        tensors["head.bias"] = normal(number_of_labels(config))
    return tensors


def write(directory: Path, config: dict, state: dict[str, torch.Tensor]) -> Path:
    """A checkpoint directory with config.json and model.safetensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def encode(config: dict, state: dict, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The encoder's output: `(batch, seq)` -> `(batch, seq, hidden)`."""
    arch, batch, seq = config["arch"], *input_ids.shape
    heads, width, eps = arch["attention"]["num_attention_heads"], arch["hidden_size"], arch["norm_eps"]

    def norm(name, x):
        return F.layer_norm(x, (width,), state[f"encoder.{name}.weight"], state[f"encoder.{name}.bias"], eps)

    x = state["encoder.embedding.word_embedding.weight"][input_ids]
    scale = state["encoder.embedding.pos_embedding.scale_factor"]
    x = norm("embedding.norm", x + scale * _sinusoids(seq, width))
    for i in range(arch["num_transformer_layers"]):
        layer = {k.removeprefix(f"encoder.layers.{i}."): v for k, v in state.items() if f".layers.{i}." in k}
        qkv = norm(f"layers.{i}.norm1", x) @ layer["attn.self_attention.query_key_value.weight"].T
        q, k, v = qkv.view(batch, seq, heads, 3, width // heads).permute(3, 0, 2, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
        if mask is not None:
            scores = scores - 10000.0 * (1 - mask[:, None, None, :].float())
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, seq, width)
        x = x + attended @ layer["attn.dense.weight"].T
        x = x + _feedforward(arch, layer, norm(f"layers.{i}.norm2", x))
    return norm("final_norm", x)


def masked_lm(config, state, input_ids, mask=None):
    """`(batch, seq)` -> `(batch, seq, vocab)`."""
    embedding = state.get("decoder.weight", state.get("encoder.embedding.word_embedding.weight"))
    return encode(config, state, input_ids, mask) @ embedding.T


def classify(config, state, input_ids, mask=None):
    """`(batch, seq)` -> `(batch, num_labels)`."""
    x, head = encode(config, state, input_ids, mask), config["arch"]["classification_head"]
    x = {"zero_index": x[:, 0], "avg": x.mean(dim=1)}[head["pooler"]]
    x = x @ state["pooler.dense.weight"].T + state["pooler.dense.bias"]
    x = {"Tanh": torch.tanh, "GELU": F.gelu, "ReLU": F.relu}[head["nonlin"]](x)
    return x @ state["head.weight"].T + state["head.bias"]


def _sinusoids(length: int, width: int) -> torch.Tensor:
    table = torch.zeros(length, width, dtype=torch.float64)
    for position in range(length):
        for pair in range(width // 2):
            angle = position / 10000 ** (2 * pair / width)
            table[position, 2 * pair], table[position, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table.float()


def _feedforward(arch: dict, layer: dict, x: torch.Tensor) -> torch.Tensor:
    if arch.get("intermed_type", "ff") == "ff":
        return F.gelu(x @ layer["ffn.dense_in.weight"].T) @ layer["ffn.dense_out.weight"].T
    scores = x @ layer["ffn.linear_in.weight"].T + layer["ffn.linear_in.bias"]  # (batch, seq, trees * nodes)
    by_tree = scores.unflatten(-1, (arch["intermed_size"], -1))  # (batch, seq, trees, nodes)
    on_path = torch.zeros_like(by_tree)
    node = torch.zeros_like(by_tree[..., :1], dtype=torch.long)
    for _ in range(arch["intermed_depth"] + 1):
        on_path.scatter_(-1, node, 1.0)
        right = (by_tree.gather(-1, node) > 0).long()
        node = (2 * node + 1 + right).clamp(max=by_tree.shape[-1] - 1)  # the clamp matters below the leaves only
    return (F.gelu(by_tree) * on_path).flatten(-2) @ layer["ffn.linear_out.weight"].T
