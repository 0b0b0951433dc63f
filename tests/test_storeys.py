"""Imports go downwards: a module imports from its own storey or one below, never from one above."""

import ast
from pathlib import Path

import pytest

import ultrafastbert

PACKAGE = Path(ultrafastbert.__file__).parent
STOREYS = [
    {"cli", "__main__", "commands"},
    {"pages"},
    {"benchmarks", "distillation", "experiments", "inspection"},
    {"pretraining", "finetuning", "conversion", "export", "serving"},
    {"runs", "inference"},
    {"__init__", "modeling_ultrafastbert"},
    {"configuration_ultrafastbert"},
    {"layers"},
    {"ops"},
    {"utils"},
]
"""From the top to the bottom; docs/architecture.md draws them."""
SIDEWAYS = {("__main__", "cli"), ("cli", "commands")}
"""Parts of one storey do not import each other, except for these."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The parts of the package that a module imports, absolute as all of its imports are."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: an import should be absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "ultrafastbert":
                is_part = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists())
                found.add(parts[1] if is_part else "__init__")
    return found


def storey(part: str) -> int:
    return next(number for number, parts in enumerate(STOREYS) if part in parts)


def test_every_part_has_a_storey():
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__pycache__"} == set().union(*STOREYS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    part = part_of(path)
    for imported in imports_of(path) - {part}:
        if part == "__init__":  # the package itself collects public names from wherever they are
            continue
        above = storey(imported) < storey(part)
        beside = storey(imported) == storey(part) and (part, imported) not in SIDEWAYS
        assert not above and not beside, f"{part} imports {imported}"
