"""GLUE's tasks are read from small files that have the layouts and quirks of the benchmark's."""

import sys

import datasets
import pytest

from ultrafastbert.finetuning.data.glue import AX_FILES, HUB_NAME, TASKS, load_glue
from ultrafastbert.utils.errors import UserError

MNLI_START = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse"
MNLI_START += "\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
MNLI_ROW = "{}\t31\t31n\tfiction\t( A b )\t( C d )\t(ROOT a)\t(ROOT c)\t{}\t{}"
STSB_START = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STSB_ROW = "{}\tmain-news\tMSRpar\t2012test\t0000\tnone\tnone\t{}\t{}"


def mnli_files() -> dict[str, list[str]]:
    files = {
        "train": [
            f"{MNLI_START}\tlabel1\tgold_label",
            MNLI_ROW.format(0, "She left .", 'He said " no .') + "\tneutral\tneutral",
            MNLI_ROW.format(1, "It rains.", "It is wet.") + "\tentailment\tentailment",
            MNLI_ROW.format(2, "a\x85b", "c\u2028d") + "\tcontradiction\tcontradiction",
        ]
    }
    for half in ("matched", "mismatched"):
        words = "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
        row = MNLI_ROW.format(0, f"{half} one", "two") + "\tentailment\tneutral\tneutral\tneutral\tneutral\tneutral"
        files[f"dev_{half}"] = [MNLI_START + words, row]
        files[f"test_{half}"] = [MNLI_START, MNLI_ROW.format(0, half, "x"), MNLI_ROW.format(1, half, "y")]
    return files


FILES = {
    "cola": {
        "train": ["gj04\t1\t\tThey saw it.", 'gj04\t0\t*\tSaw " they it.', "ks08\t1\t\tA\u2028b \x85 c."],
        "dev": ["w_80\t0\t*\tHe the."],
        "test": ["index\tsentence", "0\tBill whistled.", '1\t"The car'],
    },
    "sst2": {
        "train": ["sentence\tlabel", "a charming journey . \t1", "bleak and desperate \t0", '" odd \t1'],
        "dev": ["sentence\tlabel", "dull \t0"],
        "test": ["index\tsentence", "0\tuneasy mishmash .", "1\t the film 's end ."],
    },
    "mrpc": {
        "train": [
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            '1\t702876\t702977\tHe called it " the witness .\tHe said " so .',
            "0\t2108705\t2108831\tSold for $ 2.5 billion .\tBought in 1995 .",
        ],
        "dev": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t13\t14\tA .\tB ."],
        "test": ["\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t10\t11\tC .\tD .", "1\t12\t13\tE .\tF ."],
    },
    "stsb": {
        "train": [
            f"{STSB_START}\tscore",
            STSB_ROW.format(0, "A plane.", "A jet.") + "\t5.000",
            STSB_ROW.format(1, "A dog.", "A log.") + "\t0",
            STSB_ROW.format(2, "A cat.", "A kitten.") + "\t3.8",
        ],
        "dev": [f"{STSB_START}\tscore", STSB_ROW.format(0, "A hat.", 'A " cap.') + "\t2.833333"],
        "test": [STSB_START, STSB_ROW.format(0, "A girl.", "A boy."), STSB_ROW.format(1, "A", "B")],
    },
    "qqp": {
        "train": [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "133273\t213221\t213222\tHow is it?\tWhat is it?\t1",
            '7\t8\t9\tWas he " real?\t\t0',
        ],
        "dev": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "3\t4\t5\tWhy?\tWhy not?\t0"],
        "test": ["id\tquestion1\tquestion2", "0\tWould it?\tShould it?", "1\tWho?\tHow?"],
    },
    "mnli": mnli_files(),
    "qnli": {
        "train": [
            "index\tquestion\tsentence\tlabel",
            "0\tWhen did it begin?\tIt began in 1901.\tentailment",
            '1\tWhat is " x?\tNobody knows.\tnot_entailment',
        ],
        "dev": ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment"],
        "test": ["index\tquestion\tsentence", "0\tWhat?\tThat.", "1\tWhere?\tThere."],
    },
    "rte": {
        "train": [
            "index\tsentence1\tsentence2\tlabel",
            "0\tNone found.\tSome found.\tnot_entailment",
            "1\tA place.\tPlaces exist.\tentailment",
        ],
        "dev": ["index\tsentence1\tsentence2\tlabel", "0\tShe died.\tShe had an accident.\tnot_entailment"],
        "test": ["index\tsentence1\tsentence2", "0\tA.\tB.", "1\tC.\tD."],
    },
    "wnli": {
        "train": ["index\tsentence1\tsentence2\tlabel", "0\tIt had a hole.\tThe carrot.\t1", "1\tJohn.\tBilly.\t0"],
        "dev": ["index\tsentence1\tsentence2\tlabel", "0\tThe drain.\tThe hair.\t0"],
        "test": ["index\tsentence1\tsentence2", "0\tHorses.\tTrains.", "1\tMaude.\tDora."],
    },
}
FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
TRAINING = {
    "cola": ([("They saw it.",), ('Saw " they it.',), ("A\u2028b \x85 c.",)], [1, 0, 1]),
    "sst2": ([("a charming journey .",), ("bleak and desperate",), ('" odd',)], [1, 0, 1]),
    "mrpc": (
        [('He called it " the witness .', 'He said " so .'), ("Sold for $ 2.5 billion .", "Bought in 1995 .")],
        [1, 0],
    ),
    "stsb": ([("A plane.", "A jet."), ("A dog.", "A log."), ("A cat.", "A kitten.")], [5.0, 0.0, 3.8]),
    "qqp": ([("How is it?", "What is it?"), ('Was he " real?', "")], [1, 0]),
    "mnli": (
        [("She left .", 'He said " no .'), ("It rains.", "It is wet."), ("a\x85b", "c\u2028d")],
        [1, 0, 2],
    ),
    "qnli": ([("When did it begin?", "It began in 1901."), ('What is " x?', "Nobody knows.")], [0, 1]),
    "rte": ([("None found.", "Some found."), ("A place.", "Places exist.")], [1, 0]),
    "wnli": ([("It had a hole.", "The carrot."), ("John.", "Billy.")], [1, 0]),
}
EVALUATED = {
    "cola": ("He the.",),
    "sst2": ("dull",),
    "mrpc": ("A .", "B ."),
    "stsb": ("A hat.", 'A " cap.'),
    "qqp": ("Why?", "Why not?"),
    "mnli": ("matched one", "two"),
    "qnli": ("Who?", "He."),
    "rte": ("She died.", "She had an accident."),
    "wnli": ("The drain.", "The hair."),
}


@pytest.fixture
def write(tmp_path):
    """Writes the files of a task; keywords replace the lines of some of them."""

    def write(name: str, end: str = "\n", **changed: list[str]):
        folder = tmp_path / FOLDERS[name]
        folder.mkdir(exist_ok=True)
        for file, lines in (FILES[name] | changed).items():
            (folder / f"{file}.tsv").write_bytes((end.join(lines) + end).encode())
        return tmp_path

    return write


@pytest.fixture
def write_ax(tmp_path):
    def write_ax(file: str):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text('index\tsentence1\tsentence2\n0\tThe cat.\tThe dog.\n1\tA " b.\tC.\n')
        return tmp_path

    return write_ax


def test_tasks_are_in_the_benchmarks_order():
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert [name for name, glue in TASKS.items() if glue.task.name != name] == []
    assert [name for name, glue in TASKS.items() if glue.task.is_regression] == ["stsb"]
    primary = {name: (glue.task.metric, glue.task.primary) for name, glue in TASKS.items()}
    assert primary.pop("cola") == ("matthews", "matthews_correlation")
    assert primary.pop("stsb") == ("pearson_spearman", "spearman")
    assert primary.pop("mrpc") == primary.pop("qqp") == ("accuracy_f1", "f1")
    assert set(primary.values()) == {("accuracy_f1", "accuracy")}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FILES)
def test_every_task_from_its_files(write, name, end):
    data = load_glue(name, write(name, end))
    assert data.task == TASKS[name].task
    assert (data.train.texts, data.train.labels) == TRAINING[name]
    assert data.train.title == FOLDERS[name]
    titles = ["MNLI-m", "MNLI-mm"] if name == "mnli" else [FOLDERS[name]]
    assert [split.title for split in data.evaluations] == [split.title for split in data.tests] == titles
    assert data.evaluations[0].texts == [EVALUATED[name]]
    assert len(data.evaluations[0].labels) == len(data.evaluations[0].ids) == 1
    assert [(split.labels, split.ids) for split in data.tests] == [(None, ["0", "1"])] * len(titles)
    assert all(len(row) == len(data.train.texts[0]) for split in data.tests for row in split.texts)


def test_a_last_line_without_line_end_is_read(write):
    data_dir = write("rte")
    path = data_dir / "RTE" / "train.tsv"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert len(load_glue("rte", data_dir).train) == 2


def test_both_parts_of_mnli(write):
    data = load_glue("mnli", str(write("mnli")))
    assert [split.texts[0][0] for split in data.evaluations] == ["matched one", "mismatched one"]
    assert [split.labels for split in data.evaluations] == [[1], [1]]
    assert [split.texts[0][0] for split in data.tests] == ["matched", "mismatched"]


@pytest.mark.parametrize("file", AX_FILES)
def test_the_diagnostic_set_is_found_in_all_its_places(write, write_ax, file):
    write("mnli")
    *_, ax = load_glue("mnli", write_ax(file)).tests
    assert (ax.title, ax.ids, ax.labels) == ("AX", ["0", "1"], None)
    assert ax.texts == [("The cat.", "The dog."), ('A " b.', "C.")]


def test_a_missing_diagnostic_set_is_noted_and_a_missing_test_set_is_an_error(write):
    data_dir = write("mnli")
    notes = [note for split in load_glue("mnli", data_dir).tests for note in split.notes]
    assert len(notes) == 1
    assert "AX" in notes[0] and all(file in notes[0] for file in AX_FILES)
    (data_dir / "MNLI" / "test_mismatched.tsv").unlink()
    with pytest.raises(UserError, match=r"test_mismatched\.tsv does not exist; .*MNLI contains dev_matched\.tsv, "):
        load_glue("mnli", data_dir)


def test_broken_rows_of_qqp_are_skipped_and_noted(write):
    header, *rows = FILES["qqp"]["train"]
    halves = ["5\t6\t7\tIs this", "\tcut in two?\t0"]
    data = load_glue("qqp", write("qqp", train=[header, *halves * 3, *rows, "", *halves]))
    assert (data.train.texts, data.train.labels) == TRAINING["qqp"]
    assert data.train.ids == ["0", "1"]
    (note,) = data.train.notes
    assert note.startswith("skipped 9 lines of ")
    assert note.endswith("QQP/train.tsv with the wrong number of columns: 2, 3, 4, 5, 6, ...")
    assert data.evaluations[0].notes == data.tests[0].notes == []


def test_a_broken_row_is_an_error_in_qqps_test_set_and_in_other_tasks(write):
    with pytest.raises(UserError, match=r"QQP/test\.tsv, line 3 has 2 columns; it should have 3"):
        load_glue("qqp", write("qqp", test=["id\tquestion1\tquestion2", "0\tA?\tB?", "1\tC?"]))
    for name, lines in FILES.items():
        if name != "qqp":
            with pytest.raises(UserError, match=r"train\.tsv, line 2 has \d+ columns?; it should have \d+"):
                load_glue(name, write(name, train=[*lines["train"][:1], lines["train"][1] + "\tmore"]))


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_label_is_named_with_file_and_line(write, name):
    *start, last = FILES[name]["train"]
    word = {"cola": "\t1\t", "mrpc": "0\t"}.get(name)
    last = last.replace(word, word.replace(word.strip(), "maybe"), 1) if word else last.rpartition("\t")[0] + "\tmaybe"
    with pytest.raises(UserError, match=rf"train\.tsv, line {len(start) + 1}, column '\w+' is 'maybe'; it should be"):
        load_glue(name, write(name, train=[*start, last]))


@pytest.mark.parametrize("score", ["5.001", "-0.1", "nan", "inf", "", "3,8"])
def test_a_score_that_is_not_a_number_from_0_to_5_is_an_error(write, score):
    row = STSB_ROW.format(0, "A.", "B.")
    with pytest.raises(UserError, match=r"dev\.tsv, line 2, column 'score' is .*; it should be a number from 0 to 5"):
        load_glue("stsb", write("stsb", dev=[f"{STSB_START}\tscore", f"{row}\t{score}"]))


def test_cola_has_a_header_only_in_its_test_file(write):
    with pytest.raises(UserError, match=r"train\.tsv, line 1, column 'label' is 'label'"):
        load_glue("cola", write("cola", train=["source\tlabel\tmark\tsentence", *FILES["cola"]["train"]]))
    with pytest.raises(UserError, match=r"test\.tsv, line 1 names the columns '0', 'A\.'; .*'sentence', 'index'"):
        load_glue("cola", write("cola", test=["0\tA.", "1\tB."]))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_column_is_named(write, name):
    header, *rows = FILES[name]["test"] if name != "mnli" else FILES[name]["test_matched"]
    file = "test_matched" if name == "mnli" else "test"
    column = TASKS[name].texts[-1]
    with pytest.raises(UserError, match=rf"{file}\.tsv, line 1 names the columns .*'other'.*should name .*'{column}'"):
        load_glue(name, write(name, **{file: [header.replace(column, "other"), *rows]}))


def test_empty_and_missing_files_are_errors(write, tmp_path):
    with pytest.raises(UserError, match=r"RTE/dev\.tsv has no rows"):
        load_glue("rte", write("rte", dev=FILES["rte"]["dev"][:1]))
    (tmp_path / "RTE" / "dev.tsv").write_bytes(b"")
    with pytest.raises(UserError, match=r"RTE/dev\.tsv is empty"):
        load_glue("rte", tmp_path)
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"RTE/dev\.tsv does not exist; \S*RTE contains test\.tsv, train\.tsv"):
        load_glue("rte", tmp_path)
    with pytest.raises(UserError, match=r"WNLI/train\.tsv does not exist; \S* contains RTE"):
        load_glue("wnli", tmp_path)
    with pytest.raises(UserError, match=r"data_dir is \S*nowhere; it should be a directory with the folder RTE"):
        load_glue("rte", tmp_path / "nowhere")
    with pytest.raises(UserError, match="'mnli-mm' is not a GLUE task; it should be one of cola, sst2, "):
        load_glue("mnli-mm", tmp_path)


def test_test_sets_keep_ids_and_order_of_the_file(write):
    header = "index\tsentence1\tsentence2"
    data = load_glue("rte", write("rte", test=[header, "7\tA.\tB.", "3\tC.\tD."]))
    assert data.tests[0].ids == ["7", "3"]
    assert data.tests[0].texts == [("A.", "B."), ("C.", "D.")]
    with pytest.raises(UserError, match=r"test\.tsv, line 4: the id is 7, as in 2; all ids should be different"):
        load_glue("rte", write("rte", test=[header, "7\tA.\tB.", "3\tC.\tD.", "7\tE.\tF."]))
    with pytest.raises(UserError, match=r"test\.tsv, line 2: the id is 'x'; it should be a whole number"):
        load_glue("rte", write("rte", test=[header, "x\tA.\tB."]))


HUB_CLASSES = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "stsb": None,
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "ax": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}
HUB_TEXTS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "ax": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
}


def hub_split(config: str, texts: list[tuple[str, ...]], labels: list | None, classes=None) -> datasets.Dataset:
    """A split in the format of the Hub: labels are ClassLabel or float32, and -1 where they are not public."""
    columns = HUB_TEXTS.get(config, ["sentence1", "sentence2"])
    classes = classes or HUB_CLASSES[config]
    label = datasets.ClassLabel(names=classes) if classes else datasets.Value("float32")
    features = {column: datasets.Value("string") for column in columns}
    content = dict(zip(columns, map(list, zip(*texts, strict=True)), strict=True))
    content |= {"label": [-1] * len(texts) if labels is None else labels, "idx": list(range(len(texts)))}
    return datasets.Dataset.from_dict(
        content, features=datasets.Features(features | {"label": label, "idx": datasets.Value("int32")})
    )


@pytest.fixture
def hub(monkeypatch):
    """A dict of configurations that replaces the Hub; tests fill it."""
    configs: dict[str, datasets.DatasetDict] = {}

    def load_dataset(path, config):
        assert path == HUB_NAME
        return configs[config]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return configs


@pytest.mark.parametrize("name", FILES)
def test_hub_and_files_give_the_same_examples(write, write_ax, hub, name):
    if name == "mnli":
        write_ax("AX.tsv")
    files = load_glue(name, write(name))
    splits = {"train": files.train}
    ends = ["_matched", "_mismatched"] if name == "mnli" else [""]
    splits |= {f"validation{end}": split for end, split in zip(ends, files.evaluations, strict=True)}
    splits |= {f"test{end}": split for end, split in zip(ends, files.tests, strict=False)}
    hub[name] = datasets.DatasetDict(
        {title: hub_split(name, split.texts, split.labels) for title, split in splits.items()}
    )
    if name == "mnli":
        hub["ax"] = datasets.DatasetDict({"test": hub_split("ax", files.tests[-1].texts, None)})
    online = load_glue(name, None)
    assert online == files
    assert online.fingerprint == files.fingerprint


def rte_on_the_hub(**splits) -> datasets.DatasetDict:
    rows = [("A.", "B."), ("C.", "D.")]
    usual = {
        "train": hub_split("rte", rows, [0, 1]),
        "validation": hub_split("rte", rows, [1, 0]),
        "test": hub_split("rte", rows, None),
    }
    return datasets.DatasetDict({name: split for name, split in (usual | splits).items() if split is not None})


def test_labels_of_test_sets_on_the_hub_are_ignored(hub):
    hub["rte"] = rte_on_the_hub(test=hub_split("rte", [("A.", "B.")], [1]))
    assert load_glue("rte", None).tests[0].labels is None


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": hub_split("rte", [("A.", "B.")], [0], ["not_entailment", "entailment"])}, "has the classes"),
        ({"train": hub_split("stsb", [("A.", "B.")], [0.5])}, "has the classes None"),
        ({"train": hub_split("rte", [("A.", "B.")], [-1])}, r"split train, row 0, column 'label' is -1"),
        ({"train": hub_split("rte", [("A.", None)], [1])}, r"split train, row 0: column 'sentence2' has no text"),
        ({"train": hub_split("mnli", [("A.", "B.")], [1])}, r"has no column 'sentence1'; it has premise, hypothesis"),
        ({"validation": hub_split("rte", [("A.", "B.")], [0]).select([])}, "split validation has no rows"),
        ({"test": None}, "has no split 'test'; it has train, validation"),
    ],
)
def test_unexpected_contents_of_the_hub_are_errors(hub, splits, message):
    hub["rte"] = rte_on_the_hub(**splits)
    with pytest.raises(UserError, match=message):
        load_glue("rte", None)


def test_errors_of_the_hub_suggest_the_files(monkeypatch):
    def load_dataset(path, config):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"configuration cola, cannot be read .*no route to host .*--data_dir DIR"):
        load_glue("cola", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs `pip install datasets`.*--data_dir DIR"):
        load_glue("cola", None)
