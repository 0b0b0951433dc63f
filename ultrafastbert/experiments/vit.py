"""A small vision transformer whose feedforward layers are exchangeable."""

from collections.abc import Callable

import torch
from torch import nn


class VisionTransformer(nn.Module):
    """Patches -> linear -> class token, learned positions, dropout -> `depth` blocks -> LayerNorm -> linear.

    Args:
        image_shape: channels, height and width of an image.
        classes: of images.
        patch_size: pixels at the side of a patch; it should divide height and width.
        hidden_size: width of the blocks.
        depth: number of blocks.
        heads: of attention; a divisor of `hidden_size`.
        make_feedforward: called with `hidden_size` twice for each block, gives a layer of that input and output width.
        dropout: of the input of the first block.

    Shapes: `(rows, channels, height, width)` -> `(rows, classes)`.

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
        make_feedforward: Callable[[int, int], nn.Module],
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
        self.blocks = nn.ModuleList(
            Block(hidden_size, heads, make_feedforward(hidden_size, hidden_size)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Block(nn.Module):
    """x + attention(LayerNorm(x)), then x + feedforward(LayerNorm(x)): `(rows, tokens, hidden_size)` as it came."""

    def __init__(self, hidden_size: int, heads: int, feedforward: nn.Module):
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, heads, batch_first=True)
        self.feedforward = feedforward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.attention_norm(x)
        x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + self.feedforward(self.feedforward_norm(x))
