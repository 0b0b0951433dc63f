"""Docstrings of installed packages: which paragraphs are kept, and in which order."""

import inspect

import pytest

from ultrafastbert.pretraining.data import docstrings
from ultrafastbert.pretraining.data.docstrings import docstring_files, docstring_packages, prose, read_docstrings


@pytest.mark.parametrize(
    "docstring, paragraphs",
    [
        (
            """Returns the sum of all of the numbers in a list.

            The numbers may be of any type that can be added,
            and the list may be empty; then the sum is zero.
            """,
            [
                "Returns the sum of all of the numbers in a list.",
                "The numbers may be of any type that can be added, and the list may be empty; then the sum is zero.",
            ],
        ),
        (
            """Short.

            Parameters
            ----------
            x : array_like, of shape (n, m), or a list of such arrays
                The numbers to add up, in any order that you may like.
            """,
            ["The numbers to add up, in any order that you may like."],
        ),
        (
            """Args:
                count (`int`): How many of the numbers should be added up here.

            Examples:

            >>> This looks like a sentence but is a doctest and not prose.
            This is the output that the doctest above is said to have.

                x = some_function(of=many, named=arguments, that=do) + not_end.

            - An item of a list that has quite a number of words in it.
            1. An item of a list that has quite a number of words in it.

            .. note:: This is a directive that has quite a number of words.
            """,
            [],
        ),
        (
            """See :class:`~torch.Tensor` and ``other`` for [more words](https://example.org/x) about `it <http://a>`_.""",
            ["See torch.Tensor and other for more words about it."],
        ),
        ("No full stop at the end of this sequence of words", []),
        ("no capital letter at the start of this row of words.", []),
        ("Mostly (symbols): {a} = [b] + <c> / d_e * f_g ** h_i | j_k & l_m.", []),
    ],
)
def test_only_sentences_are_kept(docstring, paragraphs):
    assert prose(inspect.cleandoc(docstring)) == paragraphs


def test_packages_are_the_dependencies_of_the_project():
    packages = docstring_packages()
    assert {"torch", "numpy", "tokenizers"} <= packages.keys()
    assert "pytest" not in packages  # only an extra needs it
    assert list(packages) == sorted(packages)


def test_packages_are_found_when_the_project_is_not_installed(monkeypatch):
    monkeypatch.setattr(docstrings, "PROJECT", "no-such-project")
    assert {"torch", "numpy", "tokenizers"} <= docstring_packages().keys()


def test_texts_come_in_the_order_of_files_however_many_processes(monkeypatch):
    monkeypatch.setattr(docstrings, "docstring_packages", lambda: {"tqdm": "", "packaging": ""})
    files = docstring_files()
    expected = [
        paragraph
        for file in files
        for docstring in docstrings._docstrings(file.read_bytes())
        for paragraph in prose(docstring)
    ]
    assert len(expected) > 50
    for processes in (1, 3):
        monkeypatch.setattr(docstrings.os, "cpu_count", lambda processes=processes: processes)
        read = list(read_docstrings())
        assert [paragraph for paragraph, _ in read] == expected
        assert 0 < sum(size for _, size in read) <= sum(file.stat().st_size for file in files)


def test_reading_can_stop_early(monkeypatch):
    monkeypatch.setattr(docstrings, "docstring_packages", lambda: {"packaging": ""})
    started = []
    start_worker = docstrings._start_worker
    monkeypatch.setattr(docstrings, "_start_worker", lambda: started.append(start_worker()) or started[-1])
    texts = read_docstrings()
    next(texts)
    texts.close()
    assert started and all(worker.returncode is not None for worker in started)


def test_code_of_another_python_version_has_no_docstrings():
    assert list(docstrings._docstrings(b'"""Doc."""\nprint "two"\n')) == []
    assert list(docstrings._docstrings(b"\0")) == []
    assert list(docstrings._docstrings(b"(" * 10_000)) == []


def test_docstrings_of_modules_classes_functions_and_what_is_inside_them():
    code = b'''"""Module."""
if True:
    class A:
        """Class."""
        async def f(self):
            """Method."""
            def g():
                """Inner."""
'''
    assert list(docstrings._docstrings(code)) == ["Module.", "Class.", "Method.", "Inner."]
