"""The code that comes with a model on the Hub, generated from the package's own files.

Transformers copies the file with the class that it loads, and the files that this one imports relatively, from one
flat directory. So every module that the model needs becomes a file, `ops/gather.py` becomes `ops_gather.py`, and its
imports become relative. Nothing else changes, except for the native operator: its C++ sources are not copied, and
`native_stand_in` takes its place.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "ultrafastbert"
CONFIGURATION, MODELING = f"{PACKAGE}.configuration_{PACKAGE}", f"{PACKAGE}.modeling_{PACKAGE}"
STAND_INS = {f"{PACKAGE}.ops.native": f"{PACKAGE}.export.native_stand_in"}
"""Modules that do not travel, and what does instead, unchanged."""
ITSELF = "this_module"
"""What a file that others import as a whole calls itself: transformers finds only `from .x import y`."""
WHOLE = f'\n\n# for the files that import this one as a whole\n{ITSELF} = __import__("sys").modules[__name__]\n'


def travelling_code(version: str) -> dict[str, str]:
    """The files by name; their first line states the package and its `version`.

    Raises:
        ValueError: an import that a flat directory cannot have; the message names file and line.
    """
    modules, whole, waiting = {}, set(), [CONFIGURATION, MODELING]
    while waiting:
        module = waiting.pop()
        if module in modules:
            continue
        path = _path(STAND_INS.get(module, module))
        source = path.read_text(encoding="utf-8")
        if module in STAND_INS:
            modules[module] = source
            continue
        needed, modules[module] = _rewrite(source, path)
        waiting += needed
        whole |= {name for name, as_whole in needed.items() if as_whole}
    files = {}
    for module, source in modules.items():
        if module in whole:
            source += WHOLE
        files[f"{_flat(module)}.py"] = f"# Generated from {module} of {PACKAGE} {version}.\n{source}"
    if len(files) < len(modules):
        raise ValueError(f"two of the modules {sorted(modules)} have the same name in a flat directory")
    return files


def _flat(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def _path(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the part before the last dot is not a package
        return False


def _rewrite(source: str, path: Path) -> tuple[dict[str, bool], str]:
    """The modules of the package that a file imports, with whether it imports them as a whole, and its new source."""
    lines, needed = source.splitlines(), {}
    for node in sorted(_imports(source, path), key=lambda node: node.lineno, reverse=True):
        new = []
        for alias in node.names:
            module, name = f"{node.module}.{alias.name}", alias.name
            as_whole = _is_module(module)
            if not as_whole and node.module == PACKAGE:
                raise ValueError(
                    f"{path}, line {node.lineno}: {name} should be imported from the module that defines it"
                )
            module, name = (module, ITSELF) if as_whole else (str(node.module), name)
            needed[module] = needed.get(module, False) or as_whole
            known_as = alias.asname or alias.name
            renamed = "" if known_as == name else f" as {known_as}"
            new.append(f"{' ' * node.col_offset}from .{_flat(module)} import {name}{renamed}")
        lines[node.lineno - 1 : node.end_lineno] = new
    return needed, "\n".join(lines) + "\n"


def _imports(source: str, path: Path) -> Iterator[ast.ImportFrom]:
    """The statements that import from the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"{path}, line {node.lineno}: it should be from {PACKAGE}.MODULE import NAME")
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == PACKAGE:
            yield node
