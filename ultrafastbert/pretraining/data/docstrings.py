"""English prose without a download: the docstrings of the packages that this project depends on.

This is the text of the quickstart. Notable:
- Packages are found by their metadata and read with `ast`. Nothing is imported and none of their code runs.
- Only paragraphs of sentences are kept. Doctests, code, directives, headings, parameter lists and tables are dropped.
- Files are parsed in parallel processes, but texts come in the order of the files.
"""

import ast
import contextlib
import gc
import importlib.metadata
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = "ultrafastbert"
DEPENDENCIES = ["accelerate", "datasets", "jsonargparse", "matplotlib", "numpy"]
DEPENDENCIES += ["safetensors", "tokenizers", "torch", "tqdm", "transformers"]
"""Used if the project runs from a checkout without being installed."""

SKIPPED_FOLDERS = {"test", "tests", "testing", "_tests", "_vendor", "models"}
"""Half of the installed Python code: tests have little prose, and the models of transformers repeat each other's."""
MIN_WORDS = 8

_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?: ?<[^>]*>)?`")  # :class:`~torch.Tensor` -> torch.Tensor
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)|`([^`<]+) <[^>]*>`__?")  # [words](url), `words <url>`_ -> words
_MARKUP = re.compile(r"`+|\*\*|<[^<>]*>|\[\d+\]_?")
_NOT_PROSE = re.compile(
    r">>>|^\s*(?:\.\. |[-*+•#|$@]|\d+[.)]|:\w|\.\.\.|[-=~^+*_|. ]+$|[\w*, ]+ ?\([^)]*\): |[\w*, ]+ : )",
    re.MULTILINE,
)
_SENTENCES = re.compile(r"""^["'(]?[A-Z][^\n]*[.!?:]["')]?$""")
_LETTERS = re.compile(r"[A-Za-z ,.'-]")


def docstring_packages() -> dict[str, str]:
    """Versions of the distributions that this project depends on, directly or indirectly, sorted by name."""
    pending = DEPENDENCIES.copy()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        pending = list(importlib.metadata.requires(PROJECT) or DEPENDENCIES)
    found: dict[str, str] = {}
    while pending:
        name = _required_name(pending.pop())
        if name is None or name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        pending += distribution.requires or []
    return dict(sorted(found.items()))


def _required_name(requirement: str) -> str | None:
    """Normalized name of a requirement, None if its marker does not hold here (those of extras never do)."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    parsed = Requirement(requirement)
    holds = parsed.marker is None or parsed.marker.evaluate({"extra": ""})
    return canonicalize_name(parsed.name) if holds else None


def docstring_files() -> list[Path]:
    """Python files of `docstring_packages`, without `SKIPPED_FOLDERS`, in the order of packages and paths."""
    files = []
    for name in docstring_packages():
        for entry in sorted(importlib.metadata.files(name) or [], key=str):
            if entry.suffix == ".py" and not SKIPPED_FOLDERS.intersection(entry.parts):
                path = Path(str(entry.locate()))
                if path.is_file():
                    files.append(path)
    return files


def read_docstrings() -> Iterator[tuple[str, int]]:
    """Yields the paragraphs of prose in every docstring, in the order of `docstring_files`.

    The files are distributed over one worker process for each core. A worker is this module run as a program. It gets
    file names on stdin and writes one line of JSON per file, imports only the standard library, and ends when this
    process does, however that happens.

    Yields:
        `(paragraph, size)`: one line of text, and the bytes of Python code read since the previous paragraph.
    """
    files = docstring_files()
    workers = [_start_worker() for _ in range(os.cpu_count() or 1)]
    try:
        outputs = []
        for index, worker in enumerate(workers):
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\0".join(map(str, files[index :: len(workers)])).encode())
            worker.stdin.close()
            outputs.append(worker.stdout)
        size = 0
        for index, file in enumerate(files):
            size += file.stat().st_size
            line = outputs[index % len(workers)].readline()
            if not line:
                raise RuntimeError(f"the process that reads docstrings ended at {file}")
            for paragraph in json.loads(line):
                yield paragraph, size
                size = 0
    finally:
        for worker in workers:
            with worker:  # closes the pipes and waits
                worker.kill()


def _start_worker() -> subprocess.Popen:
    command = [sys.executable, "-I", "-W", "ignore", __file__]  # warnings would be about other people's code
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _work() -> None:
    """The program of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the process that reads the output ends this one
    gc.disable()  # syntax trees are millions of objects without cycles: parsing is 2.7 times faster
    names = sys.stdin.buffer.read().decode()
    for name in names.split("\0") if names else []:
        docstrings = _docstrings(Path(name).read_bytes())
        paragraphs = [paragraph for docstring in docstrings for paragraph in prose(docstring)]
        try:
            print(json.dumps(paragraphs), flush=True)
        except BrokenPipeError:  # the reader has ended
            os._exit(0)


def _docstrings(code: bytes) -> Iterator[str]:
    """Docstrings of the module, its classes and functions; none if this Python cannot parse the code."""
    try:
        pending: list[ast.AST] = [ast.parse(code)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    while pending:
        node = pending.pop()
        body = getattr(node, "body", None)
        if not isinstance(body, list):  # an expression, as most nodes are: no docstring inside
            continue
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
        pending += reversed(body)


def prose(docstring: str) -> list[str]:
    """Paragraphs of a docstring that are English sentences, each as one line without markup."""
    paragraphs = []
    for block in _blocks(docstring):
        if _NOT_PROSE.search(block):
            continue
        text = _ROLE.sub(r"\1", block)
        text = _LINK.sub(lambda match: match[1] or match[2], text)
        text = " ".join(_MARKUP.sub("", text).split())
        mostly_letters = len(_LETTERS.findall(text)) >= 0.95 * len(text)
        if len(text.split()) >= MIN_WORDS and _SENTENCES.match(text) and mostly_letters:
            paragraphs.append(text)
    return paragraphs


def _blocks(docstring: str) -> Iterator[str]:
    """Runs of lines between blank lines and changes of indentation.

    A change of indentation separates a parameter's name from its description, and code from the prose around it.
    """
    lines: list[str] = []
    indentation = 0
    for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
        text = line.strip()
        change = len(line) - len(line.lstrip()) != indentation
        if lines and (not text or change):
            yield "\n".join(lines)
            lines = []
        if text:
            indentation = len(line) - len(line.lstrip())
            lines.append(text)


if __name__ == "__main__":
    _work()
