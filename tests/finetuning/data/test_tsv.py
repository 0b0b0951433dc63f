import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultrafastbert.finetuning.data.tsv import read_lines, read_tsv
from ultrafastbert.utils.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "file.tsv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_characters="\t\n\r\0", codec="utf-8")), min_size=2, max_size=2),
        min_size=1,
    ),
    bom=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    ends_at_the_end=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_whatever_is_written_is_read(write, rows, bom, end, ends_at_the_end):
    lines = ["a\tb", *("\t".join(row) for row in rows)]
    path = write("\ufeff" * bom + end.join(lines) + end * ends_at_the_end)
    expected = [(number, [second.strip(), first.strip()]) for number, (first, second) in enumerate(rows, 2)]
    assert list(read_tsv(path, ["b", "a"])) == expected


def test_quotes_and_unicode_line_breaks_are_text(write):
    path = write('n\ttext\n0\t"one quotation mark\n1\ta\u2028b\x85c\x0bd\x1ce\rf\n')
    assert [text for _, (text,) in read_tsv(path, ["text"])] == ['"one quotation mark', "a\u2028b\x85c\x0bd\x1ce\rf"]


def test_a_file_without_header_is_read(write):
    path = write("\ufeffx\t1\ny\t2\n")
    assert list(read_tsv(path, ["word"], header=["word", "number"])) == [(1, ["x"]), (2, ["y"])]


def test_broken_rows_are_an_error_unless_they_are_collected(write):
    path = write("a\tb\n1\t2\nhalf\n\n3\t4\n5\t6\t7\n")
    broken = []
    assert [row for _, row in read_tsv(path, ["a", "b"], broken=broken)] == [["1", "2"], ["3", "4"]]
    assert broken == [3, 4, 6]
    with pytest.raises(UserError, match=r"file\.tsv, line 3 has 1 column; it should have 2"):
        list(read_tsv(path, ["a", "b"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"file\.tsv is empty"),
        (b"a\tb\n", r"file\.tsv has no rows below its header"),
        (b"a\tc\n1\t2\n", r"file\.tsv, line 1 names the columns 'a', 'c'; it should name each of 'a', 'b' once"),
        (b"a\tb\tb\n1\t2\t3\n", r"file\.tsv, line 1 names the columns 'a', 'b', 'b'"),
        (b"a\tb\n1\t2\n1\t\xe9\n", r"file\.tsv, line 3 is not UTF-8: byte 0xe9 at offset 2"),
        ("a\tb\n".encode("utf-16"), r"file\.tsv, line 1 is not UTF-8: byte 0xff"),
        ("a\tb\n".encode("utf-16-le"), r"file\.tsv, line 1 has a null byte"),
    ],
)
def test_errors_name_file_and_line(write, content, message):
    with pytest.raises(UserError, match=message):
        list(read_tsv(write(content), ["a", "b"]))


def test_gzip_is_read(write):
    content = b"one\ntwo"
    assert list(read_lines(write(gzip.compress(content), "file.gz"))) == [(1, "one\n"), (2, "two")]
    with pytest.raises(UserError, match=r"file\.gz cannot be read: Not a gzipped file"):
        list(read_lines(write(content, "file.gz")))
    with pytest.raises(UserError, match=r"file\.gz cannot be read after line 1: Compressed file ended"):
        list(read_lines(write(gzip.compress(content)[:-9], "file.gz")))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="missing.tsv cannot be read: No such file"):
        list(read_lines(tmp_path / "missing.tsv"))
