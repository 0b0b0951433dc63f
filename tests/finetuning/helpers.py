"""A task that a small model learns in a second, as `TaskData` and as files in the layout of GLUE."""

import random
from pathlib import Path

from ultrafastbert.finetuning.data.tasks import Split, Task, TaskData

WORDS = [f"w{number}" for number in range(2, 40)]


def texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts that start with `w0` or `w1`, and their labels: which of the two it is."""
    generator = random.Random(seed)
    labels = [generator.randint(0, 1) for _ in range(count)]
    return [" ".join([f"w{label}", *generator.choices(WORDS, k=generator.randint(1, 8))]) for label in labels], labels


def task_data(regression: bool = False, train: int = 96) -> TaskData:
    def split(count, seed):
        lines, labels = texts(count, seed)
        labels = [float(label) for label in labels] if regression else labels
        return Split("easy", [(text,) for text in lines], labels, [str(number) for number in range(count)])

    if regression:
        task = Task("easy", None, "pearson_spearman", "spearman")
    else:
        task = Task("easy", ("no", "yes"), "accuracy_f1", "accuracy")
    test = split(20, 3)
    test.labels = None
    return TaskData(task, split(train, 1), [split(40, 2)], [test])


def write_glue(directory: Path, train: int = 64) -> Path:
    """Writes CoLA, SST-2 and STS-B in the layout of the benchmark."""
    files = {"train": texts(train, 1), "dev": texts(30, 2), "test": texts(12, 3)}
    for folder in ("CoLA", "SST-2", "STS-B"):
        (directory / folder).mkdir(parents=True)
        for name, (lines, labels) in files.items():
            (directory / folder / f"{name}.tsv").write_text("".join(_lines(folder, name, lines, labels)))
    return directory


def _lines(folder, name, lines, labels):
    numbered = list(enumerate(zip(lines, labels, strict=True)))
    if name == "test":
        yield "index\tsentence1\tsentence2\n" if folder == "STS-B" else "index\tsentence\n"
        yield from (f"{i}\t{text}\t{text}\n" if folder == "STS-B" else f"{i}\t{text}\n" for i, (text, _) in numbered)
    elif folder == "CoLA":
        yield from (f"x\t{label}\t\t{text}\n" for _, (text, label) in numbered)
    elif folder == "SST-2":
        yield "sentence\tlabel\n"
        yield from (f"{text}\t{label}\n" for _, (text, label) in numbered)
    else:
        yield "index\tsentence1\tsentence2\tscore\n"
        yield from (f"{i}\t{text}\tw{label}\t{5 * label}.000\n" for i, (text, label) in numbered)
