"""A small vision transformer with interchangeable feedforward layers."""

from collections.abc import Callable

import torch
from torch import nn


class VisionTransformer(nn.Module):
    """Patches, linear, class token, learned positions, dropout; transformer layers; LayerNorm, linear.

    Args:
        image_shape: channels, height and width of an image.
        classes: number of classes.
        patch_size: side of a patch in pixels, a divisor of height and width.
        hidden_size: width of the transformer.
        depth: number of transformer layers.
        heads: attention heads, a divisor of `hidden_size`.
        build_feedforward: called with `hidden_size` twice for each transformer layer; returns a layer of this input
            and output width.
        dropout: dropout probability of the first transformer layer's input.

    Shapes: `(images, channels, height, width)` -> `(images, classes)`.

    Raises:
        ValueError: `patch_size` does not divide height and width.

    Source: arXiv 2010.11929, equations 1 to 4.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        patch_size: int,
        hidden_size: int,
        depth: int,
        heads: int,
        build_feedforward: Callable[[int, int], nn.Module],
        dropout: float = 0.1,
    ):
        super().__init__()
        channels, height, width = image_shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size is {patch_size}; it should divide the image's {height} by {width} pixels")
        patches = (height // patch_size) * (width // patch_size)
        self.embed = nn.Conv2d(channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + patches, hidden_size))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_size, heads, build_feedforward(hidden_size, hidden_size)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the classes."""
        patches = self.embed(images).flatten(2).transpose(1, 2)  # (images, patches, hidden_size)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        x = self.dropout(x + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


class TransformerLayer(nn.Module):
    """x + attention(LayerNorm(x)), then x + feedforward(LayerNorm(x)).

    Shapes: `(images, tokens, hidden_size)` -> the same.
    """

    def __init__(self, hidden_size: int, heads: int, feedforward: nn.Module):
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, heads, batch_first=True)
        self.feedforward = feedforward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the output of the layer."""
        tokens = self.attention_norm(x)
        x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + self.feedforward(self.feedforward_norm(x))
