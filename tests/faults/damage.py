"""Damage to files: flipped bits, truncations, zeroed blocks and NUL tails, drawn by a seed."""

import random
from pathlib import Path
from typing import NamedTuple


class Damage(NamedTuple):
    """One change of one file.

    Attributes:
        kind: `bit`, `cut`, `zeros` or `tail`.
        place: where, as a fraction of the file.
        bit: which bit of the byte there.
    """

    kind: str
    place: float
    bit: int

    def of(self, content: bytes) -> bytes:
        """The damaged content; it differs from `content` unless that has no bytes."""
        at = min(int(self.place * len(content)), len(content) - 1)
        if not content:
            return content
        if self.kind == "bit":
            return content[:at] + bytes([content[at] ^ 1 << self.bit]) + content[at + 1 :]
        if self.kind == "cut":
            return content[:at]
        if self.kind == "zeros":
            return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]
        return content + bytes(1 + at % 4096)


def sample(count: int, seed: int = 0) -> list[Damage]:
    """That many changes, half of them flipped bits; the same for a seed."""
    generator = random.Random(seed)
    kinds = ("bit", "bit", "bit", "cut", "zeros", "tail")
    return [Damage(generator.choice(kinds), generator.random(), generator.randrange(8)) for _ in range(count)]


class Damaged:
    """A context in which a file is damaged, and after which it is as before, with its times."""

    def __init__(self, path: Path, damage: Damage):
        self.path, self.damage, self.content = path, damage, path.read_bytes()

    def __enter__(self) -> "Damaged":
        self.path.write_bytes(self.damage.of(self.content))
        return self

    def __exit__(self, *exception: object) -> None:
        self.path.write_bytes(self.content)
