"""Floating-point operations of a training step, for model FLOPs utilization."""

from transformers import PreTrainedConfig

from ultrafastbert.utils.sizes import TreeSize


def training_flops(config: PreTrainedConfig, sequences: float, sequence_length: int, masked: int) -> float:
    """Floating-point operations of the matrix products in a forward and a backward pass of a masked language model.

    Counts the operations that the function needs, not those of an implementation: of a tree, only the neurons on the
    path of each token.

    Args:
        config: of an `UltraFastBertForMaskedLM` or a `BertForMaskedLM`.
        sequences: sequences in the batch.
        sequence_length: tokens in a sequence, none of them padding.
        masked: tokens in a sequence that are predicted; only these pass through the decoder.

    Source: 6 operations for each weight and token, 12 for each pair of tokens and column of attention: arXiv
    2204.02311, appendix B.
    """
    hidden = config.hidden_size
    feedforward = getattr(config, "feedforward", "dense")  # BERT's configuration has no such field
    if feedforward == "fff":
        neurons = TreeSize(config.fff_trees, config.fff_depth, config.fff_leaf_size).used
    else:
        neurons = config.intermediate_size if feedforward == "dense" else 0
    attention = 4 * hidden**2 + 2 * sequence_length * hidden  # weights, and products of pairs counted as weights
    encoder = sequences * sequence_length * config.num_hidden_layers * (attention + 2 * neurons * hidden)
    return 6 * (encoder + sequences * masked * hidden * config.vocab_size)
