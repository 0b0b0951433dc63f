"""Figures as PNG files, without a display and without pyplot's global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, Any]":
    """A figure and its panels, an array `(rows, columns)` of axes with a light grid.

    Args:
        width: of the figure. [inches]
        height: of the figure. [inches]
        rows: of panels.
        columns: of panels.
    """
    from matplotlib.figure import Figure  # here, because importing it takes a second

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, panels


def save_figure(figure: "Figure", path: Path, dpi: int = 120) -> Path:
    """Writes the figure, replacing an older file; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path
