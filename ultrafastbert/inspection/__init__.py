"""What the trees of an encoder do with text, and the regions of single leaves as data (docs/regions.md)."""

from ultrafastbert.inspection.regions import HalfSpaces, LeafEdit, half_spaces, in_region
from ultrafastbert.layers.usage import leaves, tree_layers

__all__ = ["HalfSpaces", "LeafEdit", "half_spaces", "in_region", "leaves", "tree_layers"]
