"""Sources: every kind of file and data set, and an error that names file and line for everything broken."""

import gzip
import io
import json
import lzma
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ultrafastbert.pretraining.data.packed import DataError
from ultrafastbert.pretraining.data.sources import COMPRESSIONS, Docstrings, HubDataset, TextFile, find_sources

TEXTS = ["First text, with an é.", "Second: “quoted” 世界", "Third."]


def found_by(arguments):
    return find_sources(arguments.source, arguments)


def zst(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zst}


def as_txt(texts) -> bytes:
    return "\n".join(texts).encode()


def as_jsonl(texts, column="text") -> bytes:
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()


def as_parquet(texts, column="text") -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), buffer, row_group_size=2)
    return buffer.getvalue().to_pybytes()


FORMATS = {".txt": as_txt, ".jsonl": as_jsonl, ".parquet": as_parquet}


@pytest.fixture
def read(tmp_path, arguments_for):
    """Reads a source to the end: its texts."""

    def read(source, **options):
        return [
            text.strip() for found in found_by(arguments_for(source, **options)) for text, _ in found.texts(tmp_path)
        ]

    return read


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_in_every_compression(read, write, kind, compression):
    path = write(f"text{kind}{compression}", COMPRESS[compression](FORMATS[kind](TEXTS)))
    assert read(path) == TEXTS


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", FORMATS)
def test_sizes_add_up_to_the_file(tmp_path, arguments_for, write, kind, compression):
    content = COMPRESS[compression](FORMATS[kind]([f"text number {i}" for i in range(1000)]))
    (source,) = found_by(arguments_for(write(f"text{kind}{compression}", content)))
    assert sum(size for _, size in source.texts(tmp_path)) == source.size == len(content)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_several_compressed_streams_in_one_file(read, write, compression):
    parts = [COMPRESS[compression](f"{text}\n".encode()) for text in TEXTS]
    assert read(write(f"text.txt{compression}", b"".join(parts))) == TEXTS


@pytest.mark.parametrize("padding", [4, 8, io.DEFAULT_BUFFER_SIZE, 3 * io.DEFAULT_BUFFER_SIZE - 4])
def test_padding_of_xz_streams_is_skipped(read, write, padding):
    streams = [lzma.compress(f"{text}\n".encode()) + bytes(padding) for text in TEXTS]
    assert read(write("text.txt.xz", b"".join(streams))) == TEXTS
    for broken in (streams[0][:-1], streams[0] + b"\0" + streams[1]):
        with pytest.raises(DataError, match="text.txt.xz is broken after line 1: padding ends at byte"):
            read(write("text.txt.xz", broken))


def test_texts_are_lines_or_paragraphs(read, write):
    path = write("text.txt", "\ufeffOne line,\r\nand another.\r\n\r\n \r\nA second\r\n  paragraph.\r\n".encode())
    assert read(path) == ["One line,", "and another.", "", "", "A second", "paragraph."]
    assert read(path, sample_by="paragraph") == ["One line, and another.", "A second paragraph."]


def test_another_column(read, write):
    assert read(write("a.jsonl", as_jsonl(TEXTS, "body")), text_column="body") == TEXTS
    assert read(write("a.parquet", as_parquet(TEXTS, "body")), text_column="body") == TEXTS


def test_globs_are_sorted_and_sources_stay_in_their_order(read, write, tmp_path):
    for name in ("b.txt", "a.txt", "c.txt"):
        write(name, name.encode())
    (tmp_path / "deep").mkdir()
    write("deep/d.txt", b"deep")
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt", "c.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["a.txt", "b.txt", "c.txt", "deep"]
    assert read([str(tmp_path / "c.txt"), str(tmp_path / "[ab].txt")]) == ["c.txt", "a.txt", "b.txt"]


def test_an_existing_file_with_glob_characters_is_a_file(read, write):
    assert read(write("text[1].txt", b"one")) == ["one"]


@pytest.mark.parametrize(
    "source, message",
    [
        ("nothing.txt", "nothing.txt does not exist"),
        ("nothing.jsonl.gz", "nothing.jsonl.gz does not exist"),
        ("./wikitext", "wikitext does not exist"),
        ("~/no/such/file", "file does not exist"),
        ("/no/such/file", "/no/such/file does not exist"),
        ("data/of/mine", "data/of/mine does not exist"),
        ("two words", "two words does not exist"),
        ("*.nothing", "matches no file"),
    ],
)
def test_a_string_like_a_path_never_reaches_the_hub(arguments_for, monkeypatch, tmp_path, source, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match=message):
        found_by(arguments_for(source))


def test_a_pipe_is_refused(arguments_for, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="pipe.txt is not a regular file"):
        found_by(arguments_for(tmp_path / "pipe.txt"))


def test_kinds_of_sources(arguments_for, write):
    path = write("a.txt", b"one")
    found = found_by(arguments_for(["docstrings", str(path), "wikitext", "owner/name-1.0"]))
    assert [type(source) for source in found] == [Docstrings, TextFile, HubDataset, HubDataset]


def test_a_directory_and_an_unknown_kind_are_refused(arguments_for, write, tmp_path):
    with pytest.raises(DataError, match=r"is a directory: name its files, .*\*\.txt"):
        found_by(arguments_for(tmp_path))
    for name in ("text.csv", "text.txt.bz2", "text.gz", "text"):
        with pytest.raises(
            DataError, match=f"{name} is of an unknown kind: the names of files should end in .txt, .jsonl"
        ):
            found_by(arguments_for(write(name, b"one")))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"one\ntwo\nthr\xe9e\n", r"a.txt, line 3 is not UTF-8: byte 0xe9 at offset 3 of the line"),
        ("a.jsonl", b'{"text": "one"}\n\xff\n', "a.jsonl, line 2 is not UTF-8: byte 0xff at offset 0"),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": \n', "a.jsonl, line 3 is not valid JSON"),
        ("a.jsonl", b'{"text": "one"}\n' + b"[" * 100_000, "a.jsonl, line 2 is not valid JSON: .*recursion"),
        ("a.jsonl", b'["text"]\n', "a.jsonl, line 1 should be a JSON object, it is list \\["),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"body": "two", "id": 2}\n',
            "line 2 has no field 'text'; it has: 'body', 'id'",
        ),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl, line 1: 'text' should be text, it is null"),
        ("a.jsonl", b'{"text": 17}\n', "a.jsonl, line 1: 'text' should be text, it is int 17"),
        ("a.parquet", as_parquet(TEXTS, "body"), "a.parquet has no column 'text'; it has: 'id', 'body'"),
        ("a.parquet", as_parquet([*TEXTS, None]), "a.parquet, row 4: 'text' should be text, it is null"),
        ("a.parquet", as_parquet([1, 2]), "a.parquet, row 1: 'text' should be text, it is int 1"),
        ("a.parquet", as_parquet(TEXTS)[:-30], "a.parquet is broken after row 0"),
        ("a.parquet", b"", "a.parquet is broken after row 0"),
        ("a.parquet.gz", b"no gzip", "a.parquet.gz is broken after row 0: Not a gzipped file"),
    ],
)
def test_broken_text_is_named_by_file_and_line(read, write, name, content, message):
    with pytest.raises(DataError, match=message):
        read(write(name, content))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_broken_compression_is_named_by_file_and_line(read, write, compression):
    lines = "".join(f"line number {i} of many: {i * 2654435761 % 2**32}\n" for i in range(50_000)).encode()
    whole = COMPRESS[compression](lines)
    name = f"a.txt{compression}"
    with pytest.raises(DataError, match=rf"{name} is broken after line [1-9]\d*: "):
        read(write(name, whole[: len(whole) // 2]))
    for content in (b"", b"no compressed text\n"):
        with pytest.raises(DataError, match=f"{name} is broken"):
            read(write(name, content))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damage_after_a_whole_stream_is_named_by_file_and_line(read, write, compression):
    name = f"a.txt{compression}"
    first, second = COMPRESS[compression](b"one\ntwo\n"), COMPRESS[compression](b"three\n")
    damaged = bytes([second[0] ^ 1]) + second[1:]
    for rest in (damaged, second[:-1], second[:3], b"no compressed text\n", b"?"):
        with pytest.raises(DataError, match=f"{name} is broken after line [0-3]: "):
            read(write(name, first + rest))


def test_every_flipped_byte_of_a_second_xz_stream_is_an_error(read, write):
    first, second = lzma.compress(b"one\n"), lzma.compress(b"two\n")
    for i in range(len(second)):
        damaged = second[:i] + bytes([second[i] ^ 1]) + second[i + 1 :]
        with pytest.raises(DataError, match="a.txt.xz is broken after line [12]: "):
            read(write("a.txt.xz", first + damaged))


def test_deep_values_are_shown_in_part(read, write):
    for depth in range(900, 1000):  # about as deep as JSON may be
        with pytest.raises(
            DataError, match=r"line 1: 'text' should be text, it is list \[\[|line 1 is not valid JSON"
        ):
            read(write("a.jsonl", b'{"text": ' + b"[" * depth + b"]" * depth + b"}"))


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_data_sets(read, monkeypatch, streaming):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        rows = datasets.Dataset.from_dict({"id": list(range(3)), "text": TEXTS})
        return rows.to_iterable_dataset() if options["streaming"] else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = {"hub_config": "raw", "hub_split": "test", "hub_revision": "v1", "streaming": streaming}
    assert read("owner/name", **options) == TEXTS
    assert asked == [(("owner/name", "raw"), {"split": "test", "revision": "v1", "streaming": streaming})]
    with pytest.raises(DataError, match="data set owner/name has no column 'body'; it has: 'id', 'text'"):
        read("owner/name", text_column="body", streaming=streaming)
    with pytest.raises(DataError, match="data set owner/name, row 1: 'id' should be text, it is int 0"):
        read("owner/name", text_column="id", streaming=streaming)


def test_errors_of_the_hub_are_passed_on(read, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="owner/name could not be read .*: no route to huggingface.co .*local files"):
        read("owner/name")
