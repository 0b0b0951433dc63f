import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultrafastbert.finetuning.arguments import OwnDataArguments
from ultrafastbert.finetuning.data.tables import load_table
from ultrafastbert.utils.errors import UserError

ROWS = [("good", "yes"), ('she said "no", and\nleft', "no"), ("é 世界", "yes"), ("tab\there", "no")]


def as_csv(rows, delimiter=",", header=("text", "label")) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([header, *rows])
    return buffer.getvalue()


def as_jsonl(rows, header=("text", "label")) -> str:
    return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)


CSV = as_csv(ROWS)
FORMATS = {".csv": as_csv, ".tsv": lambda rows: as_csv(rows, "\t"), ".jsonl": as_jsonl, ".json": as_jsonl}


@pytest.fixture
def load(tmp_path):
    """Loads a task from the contents of its files, by default CSV with the labels yes and no."""

    def load(train=CSV, validation="same", test=None, suffix=".csv", seed=0, **options):
        paths = {}
        for role, content in {"train": train, "validation": validation, "test": test}.items():
            if content == "same":
                content = train
            if content is not None:
                path = tmp_path / f"{role}{suffix}"
                path.write_bytes(content.encode() if isinstance(content, str) else content)
                paths[role] = str(path)
        own = OwnDataArguments(**({"validation_fraction": 0.25} | paths | options))
        return load_table("own", own.train, own, seed)

    return load


def labels_as_words(data, split):
    return [data.task.labels[label] for label in split.labels]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(load, suffix, compress):
    content = ("\ufeff" + FORMATS[suffix](ROWS)).encode()
    data = load(gzip.compress(content) if compress else content, suffix=suffix + ".gz" * compress)
    assert data.task.labels == ("no", "yes")
    assert (data.task.metric, data.task.primary) == ("accuracy_f1", "accuracy")
    for split in (data.train, *data.evaluations):
        assert list(zip(split.texts, labels_as_words(data, split), strict=True)) == [((t,), w) for t, w in ROWS]
        assert (split.title, split.ids, split.notes) == ("own", ["0", "1", "2", "3"], [])
    assert data.tests == []


TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from("ab")), min_size=1), suffix=st.sampled_from([*FORMATS]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_whatever_is_written_is_read(load, rows, suffix):
    header = ("first", "second", "label")
    rows = [*rows, ("x", "y", "a"), ("x", "y", "b")]
    if suffix in (".csv", ".tsv"):
        content = as_csv(rows, {".csv": ",", ".tsv": "\t"}[suffix], header)
    else:
        content = as_jsonl(rows, header)
    data = load(content, suffix=suffix, text_columns=["second", "first"])
    assert data.train.texts == [(second.strip(), first.strip()) for first, second, _ in rows]
    assert labels_as_words(data, data.train) == [label for *_, label in rows]


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["1.0", "1", "0"], ("0", "1", "1.0")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["nan", "10", "9"], ("10", "9", "nan")),
        ([" a", "a ", "b"], ("a", "b")),
    ],
)
def test_classes_are_sorted_words_or_numbers(load, words, labels):
    assert load(as_csv([("t", word) for word in words])).task.labels == labels


def test_labels_of_json(load):
    rows = [("t", label) for label in (True, "x", 3, "3", False)]
    data = load(as_jsonl(rows), suffix=".jsonl")
    assert labels_as_words(data, data.train) == ["true", "x", "3", "3", "false"]


@pytest.mark.parametrize("label", [None, [1], {"a": 1}, 1.5])
def test_labels_of_json_that_are_not_classes_are_errors(load, label):
    with pytest.raises(UserError, match=r"train\.jsonl, line 2, column 'label' is .*; it should be a string, a whole"):
        load(as_jsonl([("t", "a"), ("t", label)]), suffix=".jsonl")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", as_csv([("t", "-2.5"), ("t", "1e3"), ("t", "3")])),
        (".jsonl", as_jsonl([("t", -2.5), ("t", "1e3"), ("t", 3)])),
    ],
)
def test_regression(load, suffix, content):
    data = load(content, suffix=suffix, regression=True)
    assert (data.task.labels, data.task.metric, data.task.primary) == (None, "pearson_spearman", "spearman")
    assert data.train.labels == [-2.5, 1000.0, 3.0]
    assert all(isinstance(label, float) for label in data.train.labels)


@pytest.mark.parametrize("label", ["nan", "inf", "1e999", "high", "1,5"])
def test_numbers_that_are_not_finite_are_errors(load, label):
    with pytest.raises(UserError, match=r"train\.csv, line 3: the label is .*; it should be a finite number"):
        load(as_csv([("t", "1"), ("t", label)]), regression=True)


@pytest.mark.parametrize("label", ["true", "NaN", "null", "[1]"])
def test_values_of_json_that_are_not_finite_numbers_are_errors(load, label):
    with pytest.raises(UserError, match=r"train\.jsonl, line 1.* it should be a (finite )?number"):
        load(f'{{"text": "t", "label": {label}}}\n', suffix=".jsonl", regression=True)


def test_a_test_file_needs_no_labels(load):
    data = load(test=as_csv([("a",), ("b",)], header=("text",)))
    assert [(split.texts, split.labels, split.ids) for split in data.tests] == [([("a",), ("b",)], None, ["0", "1"])]
    assert load(test=as_csv([("a", "yes")])).tests[0].labels == [1]
    with pytest.raises(UserError, match=r"test\.csv, line 2: the label 'maybe' is not in the training file"):
        load(test=as_csv([("a", "maybe")]))
    with pytest.raises(UserError, match=r"test\.jsonl, line 1, column 'label' is null; it should be a string"):
        load(as_jsonl(ROWS), test='{"text": "a"}\n{"text": "b", "label": "yes"}\n', suffix=".jsonl")


def test_held_out_examples_are_a_random_part_of_the_training_file(load):
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(40)]
    data = load(as_csv(rows), None, seed=1)
    (held,) = data.evaluations
    assert (len(data.train), len(held)) == (30, 10)
    together = [
        (*text, word)
        for split in (data.train, held)
        for text, word in zip(split.texts, labels_as_words(data, split), strict=True)
    ]
    assert sorted(together) == sorted(rows)
    for split in (data.train, held):  # in the order of the file
        numbers = [int(text.removeprefix("text ")) for (text,) in split.texts]
        assert numbers == sorted(numbers)
        assert split.ids == [str(row) for row in range(len(split))]
    assert held.notes[0].startswith("10 of the 40 examples of ") and "(seed 1)" in held.notes[0]
    assert load(as_csv(rows), None, seed=1).fingerprint == data.fingerprint
    assert load(as_csv(rows), None, seed=2).fingerprint != data.fingerprint


def test_each_class_stays_in_training(load):
    rows = [("t", "common")] * 8 + [("t", "rare"), ("t", "scarce")]
    for seed in range(20):
        data = load(as_csv(rows), None, seed=seed, validation_fraction=0.7)
        assert set(data.train.labels) == {0, 1, 2}
        assert len(data.evaluations[0]) == 7
    with pytest.raises(
        UserError, match=r"train\.csv has too few examples \(10\) to hold out 8 and keep one of each class"
    ):
        load(as_csv(rows), None, validation_fraction=0.8)


def test_at_least_one_example_is_held_out_and_one_is_kept(load):
    numbers = as_csv([("a", "1"), ("b", "2")])
    assert len(load(numbers, None, regression=True, validation_fraction=0.01).evaluations[0]) == 1
    with pytest.raises(UserError, match=r"too few examples \(1\) to hold out 1 and keep one to train on"):
        load(as_csv([("a", "1")]), None, regression=True)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="own.validation_fraction is .*; it should be greater than 0 and less th"):
            load(numbers, None, regression=True, validation_fraction=fraction)


def test_blank_lines_at_the_end_are_ignored(load):
    for suffix, content in ((".csv", as_csv(ROWS)), (".jsonl", as_jsonl(ROWS))):
        assert len(load(content + "\n\r\n\n", suffix=suffix).train) == 4


def test_carriage_returns_alone_end_records(load):
    assert load("text,label\ra,x\rb,y\r").train.texts == [("a",), ("b",)]


def test_long_texts_are_read(load):
    text = "word " * 50_000 + "end"
    limit = csv.field_size_limit()
    assert load(as_csv([(text, "a"), ("t", "b")])).train.texts[0] == (text,)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.csv, line 1 is blank; it should name the columns"),
        ("\ntext,label\na,b\n", r"line 1 is blank"),
        ("text,label\n", r"train\.csv has no rows"),
        ("text,label\na,x\n", r"train\.csv has only 'x' in column 'label'; it should have two or more classes"),
        ("text,label\na,x\n\nb,y\n", r"line 3 has 0 columns; it should have 2"),
        ("text,label\na,x\nb,y,z\n", r"line 3 has 3 columns; it should have 2"),
        ('text,label\n"a\nb",x\nc\n', r"line 4 has 1 column; it should have 2"),
        ('text,label\n"a\nb",\n', r"line 2, column 'label' is empty"),
        ('text,label\n"a\n\n\nb",x\n  ,y\n', r"line 6, column 'text' is empty"),
        ('text,label\na,x\n"b,y\nc,y\n', r"the row that starts in line 3 is broken: unexpected end of data"),
        ('text,label\n"a" b,x\n', r"the row that starts in line 2 is broken: ',' expected after '\"'"),
        ("text,tag\na,x\n", r"line 1 has no column 'label'; it has 'text', 'tag'"),
        ("label,label,text\na,x,y\n", r"line 1 names the column 'label' more than once"),
        ('text,label\na,"x\ty"\nb,z\n', r"line 2, column 'label' is 'x\\ty'; it should have neither tabs nor"),
        (b"text,label\na,x\n\xe9,y\n", r"line 3 is not UTF-8: byte 0xe9 at offset 0"),
        (b"text,label\na\0b,x\n", r"line 2 has a null byte"),
    ],
)
def test_errors_in_csv_name_file_and_line(load, content, message):
    with pytest.raises(UserError, match=message):
        load(content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"line 3 is not a JSON object, as each line should be: Expecting value$"),
        ('{"text": "a"', r"line 3 is not a JSON object, as each line should be: Expecting ',' delimiter$"),
        ('["a", "x"]', r"line 3 is not a JSON object, as each line should be, but \['a', 'x'\]"),
        (
            '{"text": "a", "label": "x", "text": "b"}',
            r"line 3 is not a JSON .* should be: it has 'text' more than once",
        ),
        ("[" * 100_000, r"line 3 is not a JSON object, as each line should be: maximum recursion"),
        ('{"label": "x", "title": "b"}', r"line 3 has no column 'text'; it has 'label', 'title'"),
        ('{"text": null, "label": "x"}', r"line 3, column 'text' is null; it should be text"),
        ('{"text": 5, "label": "x"}', r"line 3, column 'text' is 5; it should be text"),
        ('{"text": " ", "label": "x"}', r"line 3, column 'text' is empty"),
        ('{"text": "a", "label": ""}', r"line 3, column 'label' is empty"),
        ('{"text": "\\ud800", "label": "x"}', r"line 3, column 'text' is not valid Unicode: surrogates not allowed"),
        ("", r"line 3 is not a JSON object, as each line should be: Expecting value$"),
    ],
)
def test_errors_in_jsonl_name_file_and_line(load, line, message):
    rows = as_jsonl([("a", "x"), ("b", "y")])
    with pytest.raises(UserError, match=r"train\.jsonl, " + message):
        load(f'{rows}{line}\n{{"text": "c", "label": "y"}}\n', suffix=".jsonl")


def test_a_label_that_training_does_not_have_is_an_error(load):
    with pytest.raises(UserError, match=r"validation\.csv, line 4: the label 'maybe' is not in the training file"):
        load(validation=as_csv([("a\nb", "yes"), ("c", "maybe")]))


def test_wrong_arguments_are_errors(load, tmp_path):
    with pytest.raises(
        ValueError, match=r"own.text_columns is \['a', 'b', 'c'\]; it should be a list of one or two c"
    ):
        load(text_columns=["a", "b", "c"])
    with pytest.raises(
        ValueError, match=r"own.text_columns and own.label_column are \['label', 'label'\]; they should be diff"
    ):
        load(text_columns=["label"])
    with pytest.raises(UserError, match=r"train\.xlsx has an unknown format; its name should end in one of \.csv, "):
        load(suffix=".xlsx")
    nowhere = str(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read: No such file"):
        load_table("own", nowhere, OwnDataArguments(train=nowhere))
    with pytest.raises(UserError, match=r"the name of the task is '\.\./own'; it should consist of letters"):
        load_table("../own", nowhere, OwnDataArguments(train=nowhere))
