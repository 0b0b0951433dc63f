"""The data of a page to explore what trees do with texts: the path of each token, with the margin of each decision.

The size is bounded: a page has at most `TEXTS` texts, `MODELS` models, `TREES` trees of a layer and `DECISIONS`
decisions. `Exploration.remarks` says what is not in the page for that reason.
"""

import math
from dataclasses import dataclass, field

import torch

from ultrafastbert.inspection.loading import Encoder
from ultrafastbert.inspection.statistics import NEAR_ZERO, TreeStatistics, decisions_of_tokens
from ultrafastbert.inspection.summary import TOKENS_OF_A_LEAF, describe_leaf
from ultrafastbert.inspection.summary_text import label
from ultrafastbert.layers.usage import tree_layers
from ultrafastbert.utils.errors import UserError

TEXTS = 300
MODELS = 8
TREES = 8
DECISIONS = 500_000
"""Over all models; some 4 megabytes."""


@dataclass
class Exploration:
    """What a page shows, as JSON types; `add` adds models, whose trees have the same sizes.

    Attributes:
        texts: candidates; those that are in the page are `shown`.
        models: number of models that will be added.
        shown: for each text in the page `text`, `tokens` and `cut`, whether the text is longer than the positions.
        layers: for each layer `trees`, `shown_trees` (the first ones), `depth` and `leaf_size`.
        explored: for each model `name`, `model`, `tokens` (that its counts are of), `paths` and `leaves`.

            - `paths` has for each text in the page `leaves` `(tokens, layers, trees)`, and `margins` `(tokens, layers,
              trees, depth)`: the logits of the decisions, rounded to three decimals, None where not finite. A token
              goes to the right where the logit is greater than 0.
            - `leaves` has for each layer and tree the leaves that the page's tokens reach, by their numbers, with
              `tokens` and `top` as `summarize` gives them: counted over all texts, not only those in the page.
        remarks: what is not in the page, and why.
    """

    texts: list[str]
    models: int
    shown: list[dict] = field(default_factory=list)
    layers: list[dict] = field(default_factory=list)
    explored: list[dict] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, encoder: Encoder, summary: dict, statistics: TreeStatistics) -> None:
        """Adds a model.

        Args:
            encoder: the model.
            summary: of it, from `summarize`.
            statistics: of all texts.

        Raises:
            UserError: its tokenizer splits texts into other tokens than that of the first model.
        """
        if not self.explored:
            self._choose_texts(encoder)
        paths, reached = [], [[set() for _ in range(layer["shown_trees"])] for layer in self.layers]
        for text in self.shown:
            input_ids = _encode(encoder, text["text"])
            if encoder.tokenizer.convert_ids_to_tokens(input_ids[0].tolist()) != text["tokens"]:
                raise UserError(
                    f"model {encoder.name} splits {text['text']!r} into other tokens than {self.explored[0]['model']};"
                    " models of one page should have the same tokenizer"
                )
            paths.append(self._paths(encoder, input_ids, reached))
        leaves = [
            [
                {str(leaf): _describe(statistics, index, encoder, tree, leaf) for leaf in sorted(leaves)}
                for tree, leaves in enumerate(trees)
            ]
            for index, trees in enumerate(reached)
        ]
        found = {"name": label(summary), "model": encoder.name, "tokens": summary["tokens"]}
        self.explored.append(found | {"paths": paths, "leaves": leaves})

    def _choose_texts(self, encoder: Encoder) -> None:
        """The texts that are in the page: the first ones, as many as its size allows, at least one."""
        for layer in tree_layers(encoder.model):
            size = {"trees": layer.trees, "shown_trees": min(TREES, layer.trees), "depth": layer.depth}
            self.layers.append(size | {"leaf_size": getattr(layer, "leaf_size", None)})
        for index, layer in enumerate(self.layers):
            if layer["shown_trees"] < layer["trees"]:
                self.remarks.append(f"Layer {index}: trees 0 to {TREES - 1} of {layer['trees']:,} are in this page.")
        per_token = self.models * sum(layer["shown_trees"] * layer["depth"] for layer in self.layers)
        tokens, empty, considered = 0, 0, 0
        for text in self.texts[:TEXTS]:
            input_ids = _encode(encoder, text)
            if not input_ids.numel():
                considered, empty = considered + 1, empty + 1
                continue
            if self.shown and (tokens + input_ids.numel()) * per_token > DECISIONS:
                break
            considered += 1
            tokens += input_ids.numel()
            longest = encoder.model.config.max_position_embeddings
            cut = input_ids.numel() == longest and len(encoder.tokenizer(text)["input_ids"]) > longest
            words = encoder.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
            self.shown.append({"text": text, "tokens": words, "cut": cut})
        if empty:
            self.remarks.append(f"Texts without any token, which are not in this page: {empty:,}.")
        if considered < len(self.texts):
            self.remarks.append(
                f"The first {considered:,} of {len(self.texts):,} texts are in this page, which has at most {TEXTS:,}"
                f" texts and {DECISIONS:,} decisions. The counts of leaves are of all texts."
            )

    def _paths(self, encoder: Encoder, input_ids: torch.Tensor, reached: list[list[set[int]]]) -> dict:
        found = decisions_of_tokens(encoder.model, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        leaves, margins = [], []
        for (leaf, logits), layer, trees in zip(found, self.layers, reached, strict=True):
            some = layer["shown_trees"]
            leaves.append(leaf[0, :, :some].tolist())
            margins.append(_rounded(logits[0, :, :some].tolist()))
            for token in leaves[-1]:
                for tree, one in enumerate(token):
                    trees[tree].add(one)
        by_token = {"leaves": zip(*leaves, strict=True), "margins": zip(*margins, strict=True)}
        return {name: [list(layers) for layers in values] for name, values in by_token.items()}

    def to_dict(self) -> dict:
        """The data of the page."""
        facts = {"near_zero": NEAR_ZERO, "most_tokens_of_a_leaf": TOKENS_OF_A_LEAF, "remarks": self.remarks}
        return {"texts": self.shown, "layers": self.layers, "models": self.explored} | facts


def choose_models(names: list[str]) -> tuple[list[str], list[str]]:
    """At most `MODELS` of the models, evenly spaced, the first and last included; a remark if there are more."""
    if len(names) <= MODELS:
        return names, []
    last = len(names) - 1
    chosen = [names[round(last * index / (MODELS - 1))] for index in range(MODELS)]
    return chosen, [f"{MODELS} of {len(names)} models are in this page, evenly spaced."]


def _encode(encoder: Encoder, text: str) -> torch.Tensor:
    """int64 `(1, tokens)`, cut at the encoder's last position."""
    longest = encoder.model.config.max_position_embeddings
    return torch.tensor([encoder.tokenizer(text, truncation=True, max_length=longest)["input_ids"]], dtype=torch.long)


def _rounded(values: list) -> list:
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 3) if math.isfinite(values) else None


def _describe(statistics: TreeStatistics, index: int, encoder: Encoder, tree: int, leaf: int) -> dict:
    described = describe_leaf(statistics, index, encoder, tree, leaf)
    return {"tokens": described["tokens"], "top": described["top"]}
