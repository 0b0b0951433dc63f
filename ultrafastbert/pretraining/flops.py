"""Floating-point operations of a training step, for model FLOPs utilization."""

from transformers import PreTrainedConfig

from ultrafastbert.utils.sizes import DenseSize


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
    # BERT's configuration has one size of dense layers
    sizes = getattr(config, "sizes_by_layer", [DenseSize(config.intermediate_size)] * config.num_hidden_layers)
    attention = 4 * hidden**2 + 2 * sequence_length * hidden  # weights, and products of pairs counted as weights
    encoder = sequences * sequence_length * sum(attention + 2 * size.used * hidden for size in sizes)
    return 6 * (encoder + sequences * masked * hidden * config.vocab_size)
