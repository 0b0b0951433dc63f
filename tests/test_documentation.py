"""The documentation: its links lead somewhere, its commands have the options they name, and the walk can be walked."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from tests.distillation.helpers import make_tokenizer, write_texts
from tests.finetuning.helpers import texts, write_glue
from ultrafastbert import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
PROGRAMS = {"ultrafastbert": [], "train_mlm.py": ["pretrain"], "finetune_glue.py": ["finetune"]}
OPERATORS = {"&&", "||", "|", ";", ">", ">>", "&"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def lines(page):
    """The command lines of a page's blocks, as lists of words; those that a `\\` continues are one. Variables of the
    shell are replaced by their value, those of a loop by the first one."""
    variables = {}
    for language, text in blocks(page):
        if language in ("bash", ""):
            for line in text.replace("\\\n", " ").splitlines():
                try:
                    words = shlex.split(line, comments=True)
                except ValueError:  # output or prose, with an apostrophe
                    continue
                if len(words) == 1 and (assignment := re.fullmatch(r"(\w+)=(.*)", words[0])):
                    variables[f"${assignment[1]}"] = shlex.split(assignment[2])
                elif words and words[0] == "for":
                    variables[f"${words[1]}"] = [words[3].rstrip(";")]
                elif words:
                    yield [replaced for word in words for replaced in variables.get(word, [word])]


def commands(words):
    """The commands of this program in a line: their words after `ultrafastbert`."""
    for start, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in PROGRAMS:
            end = next((i for i in range(start + 1, len(words)) if words[i] in OPERATORS), len(words))
            yield PROGRAMS[name] + words[start + 1 : end]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pages
def test_links_lead_to_files_and_headings(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pages
def test_commands_have_the_options_that_the_page_names(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for words in lines(page):
        for argv in commands(words):
            table, program = cli.COMMANDS, "ultrafastbert"
            while argv and argv[0] in cli.GROUPS:
                table, program, argv = cli.GROUPS[argv[0]], f"ultrafastbert {argv[0]}", argv[1:]
            if argv and argv[0] not in ("COMMAND", "--help"):
                assert argv[0] in table, f"{page.name}: {shlex.join(words)}"
                arguments_class = cli._load(table[argv[0]].arguments)
                try:
                    cli.parse_arguments(arguments_class, argv[1:], program)
                except SystemExit:
                    pytest.fail(f"{page.name}: {shlex.join(words)}\n{capsys.readouterr().err}")


def test_commands_are_found():
    """Without them the test above would check nothing."""
    found = {page: [argv for words in lines(page) for argv in commands(words)] for page in PAGES}
    assert len(found[ROOT / "README.md"]) >= 9 and sum(map(len, found.values())) >= 70
    assert ["report", "out/quickstart", "--output", "out/quickstart.html"] in found[ROOT / "docs/walk.md"]


@pages
def test_scripts_that_the_page_runs_exist(page):
    for words in lines(page):
        for word in words:
            if re.fullmatch(r"(scripts|configs)/[\w./-]+", word):
                assert (ROOT / word).is_file(), f"{page.name}: {word}"


# the walk

WALK = ROOT / "docs/walk.md"
ENCODER = ["--model.hidden_size", "32", "--model.num_hidden_layers", "2", "--model.num_attention_heads", "2"]
PRETRAIN = [*ENCODER, "--train.max_steps", "3", "--train.batch_size", "4", "--train.micro_batch_size", "4"]
PRETRAIN += ["--model.fff", "1x3", "--data.source", "texts/*.txt", "--train.eval_sequences", "4"]
PRETRAIN += ["--data.max_tokens_per_character", "0.4"]
DISTILL = ["--train.max_steps", "2", "--train.batch_size", "4", "--fit.tokens", "500", "--fit.steps", "3"]
DISTILL += ["--fff", "1x2x4", "--data.validation_sequences", "8", "--data.max_length", "16"]
SMALL = {"pretrain": PRETRAIN, "finetune": ["--epochs", "1", "--seeds", "1"], "distill": DISTILL}
"""Later options override earlier ones, so these are put after those of the page."""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A directory with what the walk reads."""
    for name in ("configs", "scripts", "train_mlm.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts/one.txt", count=3000)
    write_glue(tmp_path / "glue")
    examples, labels = texts(40, seed=1)
    rows = [f"{text},{'good' if label else 'bad'}" for text, label in zip(examples, labels, strict=True)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars", *rows]))
    (tmp_path / "new.csv").write_text("\n".join(["review", *examples[:5]]))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tokenizer = make_tokenizer()
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "my-bert")
    tokenizer.save_pretrained(tmp_path / "my-bert")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def run(words, **environment):
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def request(words, port):
    """What `curl` of these words does, from another port."""
    words = [word.replace("8080", str(port)) for word in words]
    url = next(word for word in words if word.startswith("http"))
    name, _, value = words[words.index("-H") + 1].partition(": ")
    body = words[words.index("-d") + 1].encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {name: value}), timeout=60) as response:
        return json.loads(response.read())


def wait_until_ready(port, process):
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail("the server did not start")


@pytest.mark.slow
def test_the_commands_of_the_walk_run_one_after_the_other(directory, capsys):
    for package in ("fastapi", "uvicorn", "prometheus_client", "sentence_transformers"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran, server = [], None
    try:
        for language, text in blocks(WALK):
            if language == "python":
                exec(compile(text, f"{WALK.name}: {text[:40]}", "exec"), {})
                ran.append("python")
                continue
            for line in text.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line)
                ran.append(" ".join([program, *words[:1]]))
                if program == "ultrafastbert" and words[0] == "serve":
                    words = [sys.executable, "-m", "ultrafastbert", *words, "--port", str(port)]
                    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
                    wait_until_ready(port, server)
                elif program == "ultrafastbert":
                    cli.main(argv=[*words, *SMALL.get(words[0], [])])
                elif program == "curl":
                    assert len(request([program, *words], port)[0]) == 16
                elif program == "torchrun":
                    torchrun = [sys.executable, "-m", "torch.distributed.run", *words, *PRETRAIN]
                    run(torchrun, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
                elif program == "python" and words[0] == "-m":
                    run([sys.executable, *words])
                else:  # installing, which this environment has done, and measuring a GPU, which it may not have
                    assert program in ("python3", "source", "pip") or words[0] == "scripts/measure_gpu.py"
    finally:
        if server:
            server.terminate()
            server.communicate(timeout=60)
    assert [command for command in ran if command.startswith(("ultrafastbert", "curl", "torchrun", "python"))] == [
        "python3 -m",
        "python -m",
        *(f"ultrafastbert {command}" for command in ("pretrain", "fill-mask", "report")),
        *(f"ultrafastbert {command}" for command in ("prepare-data", "pretrain", "plot")),
        *(f"ultrafastbert {command}" for command in ("finetune", "finetune", "predict", "convert", "distill")),
        "python",
        "ultrafastbert serve",
        "curl http://127.0.0.1:8080/embed",
        "python scripts/measure_gpu.py",
        "ultrafastbert pretrain",
        "torchrun --nproc_per_node",
    ]
    for path in ("out/quickstart.html", "out/predictions.tsv", "out/glue/glue.md", "out/fast", "out/two/final"):
        assert (directory / path).exists()
    assert server.returncode == 0
