"""Small models of every kind, and processes in which this package cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import torch

import ultrafastbert
from tests.test_modeling_libraries import WORDS, tiny, tokenizer
from ultrafastbert import HardFFF
from ultrafastbert.export.loading import HEADS

ARCHITECTURES = {
    "tree": {"fff_depth": 9},
    "trees": {"fff_depth": 3, "fff_trees": 2},
    "wide": {"fff_depth": 0, "fff_trees": 7},
    "leaves": {"fff_depth": 3, "fff_leaf_size": 4},
    "dense": {"feedforward": "dense", "intermediate_size": 24},
    "none": {"feedforward": "none"},
    "rotary": {"position_embedding": "rotary", "decoder_bias": True},
    "bert": {
        "position_embedding": "learned",
        "type_vocab_size": 2,
        "norm_position": "post",
        "projection_bias": True,
        "fff_depth": 2,
        "fff_leaf_size": 3,
        "feedforward_skip": True,
    },
}
"""Options of the model by the name of a kind."""

WITHOUT_THE_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ultrafastbert":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NotInstalled())
for name in ("datasets", "accelerate", "jsonargparse", "matplotlib", "evaluate", "sklearn", "scipy", "peft"):
    sys.modules[name] = None
"""


def make(head="UltraFastBertModel", **options):
    """A model whose trees with leaves have decisions, and different leaves."""
    torch.manual_seed(0)
    model = HEADS[head](tiny(**({"initializer_range": 0.5} | options))).eval()
    for module in model.modules():
        if isinstance(module, HardFFF):
            module.split_by_variance(torch.randn(100, module.input_size))
            torch.nn.init.normal_(module.leaf_weight_in, std=0.3)
            torch.nn.init.normal_(module.leaf_weight_out, std=0.1)
        elif isinstance(module, ultrafastbert.FFF):
            torch.nn.init.normal_(module.weight_out, std=0.3)
    return model


def save(model, directory):
    """Saves a model with a tokenizer, as pretraining does; returns the directory."""
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return Path(directory)


def batch(model=None):
    """Sequences that are full, padded on the right and padded on the left; of choices for multiple choice."""
    input_ids = torch.randint(5, len(WORDS), (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(input_ids)
    mask[1, 4:] = 0
    mask[2, :6] = 0
    if "MultipleChoice" in type(model).__name__:
        input_ids, mask = torch.stack((input_ids, input_ids.flip(1)), dim=1), mask[:, None].repeat(1, 2, 1)
    return {"input_ids": input_ids, "attention_mask": mask}


def first_outputs(output):
    """The tensors that a model computes, without those that a head adds only on request."""
    return [tensor for tensor in output.to_tuple() if isinstance(tensor, torch.Tensor)]


def run_without_the_package(program, directory, *arguments):
    """Runs a program where `import ultrafastbert` fails, as if only torch and transformers were installed."""
    environment = os.environ | {"HF_MODULES_CACHE": str(directory / "modules"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment,
    )
