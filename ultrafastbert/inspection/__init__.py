"""What the trees of an encoder do with text, and the regions of single leaves.

`leaves`, `in_region`, `half_spaces` and `LeafEdit` give the regions of a tree as data (docs/regions.md).
"""

from ultrafastbert.inspection.regions import HalfSpaces, LeafEdit, half_spaces, in_region
from ultrafastbert.layers.usage import leaves, tree_layers

__all__ = ["HalfSpaces", "LeafEdit", "half_spaces", "in_region", "leaves", "tree_layers"]
