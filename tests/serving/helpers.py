"""Small models of every kind that can be served, and servers of them in this process and in others."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import uvicorn
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from tests.conftest import LENGTH, VOCAB
from tests.export.helpers import make
from tests.test_modeling_libraries import tokenizer
from ultrafastbert.serving.app import create_app
from ultrafastbert.serving.arguments import ServeArguments
from ultrafastbert.serving.engine import load_engine
from ultrafastbert.serving.server import bind
from ultrafastbert.serving.service import Service

ROOT = Path(__file__).parents[2]
EXACT = {"dtype": "float32", "int8": False}
"""Options with which optimised models round as little as others."""
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12", "w3 w2 w1", "w20 w21"]


def save_encoder(directory, tokenizer, head="UltraFastBertModel", **options):
    """A model for the tokenizer of `packed_directory`, whose sixty words have no special tokens around them."""
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": LENGTH, "fff_depth": 3}
    make(head, **(sizes | options)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return str(directory)


def save_classifier(directory, **options):
    """A model that classifies pairs, whose tokenizer has token types and special tokens."""
    make("UltraFastBertForSequenceClassification", type_vocab_size=2, **options).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    settings = Path(directory) / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}  # as for BERT
    settings.write_text(json.dumps(json.loads(settings.read_text()) | names))
    return str(directory)


def arguments_for(directory, **options):
    return ServeArguments(model=str(directory), **(EXACT | {"port": 0} | options))


@contextlib.contextmanager
def serving(directory, change=lambda engine: None, **options):
    """A client of the application, with the service as its attribute; `change` may alter the engine before."""
    arguments = arguments_for(directory, **options)
    engine = load_engine(arguments)
    change(engine)
    with Service(engine, arguments) as service:
        client = TestClient(create_app(service), raise_server_exceptions=False)
        client.service = service
        yield client


@contextlib.contextmanager
def listening(directory, change=lambda engine: None, **options):
    """The service behind real sockets, in a thread of this process: the service and its address."""
    arguments = arguments_for(directory, **options)
    engine = load_engine(arguments)
    change(engine)
    with bind("127.0.0.1", 0) as listener, Service(engine, arguments) as service:
        server = uvicorn.Server(uvicorn.Config(create_app(service), lifespan="off", log_level="warning"))
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield service, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Gate:
    """Holds an engine's batches until `open` is set, and records their texts."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, engine):
        run = engine.run

        def held(batch):
            self.batches.append([tuple(text.input_ids) for text in batch])
            self.entered.set()
            assert self.open.wait(60)
            return run(batch)

        engine.run = held


@contextlib.contextmanager
def process(*words, environment=None, module="ultrafastbert"):
    """A server in a process of its own: the process and its address. It is killed at the end if it still runs."""
    command = [sys.executable, "-m", module, *(["serve"] if module == "ultrafastbert" else []), *words]
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = started.stdout.readline()
        found = re.search(r"at (http://\S+)", line)
        assert found, line + started.stderr.read()
        yield started, found[1]
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
        started.stderr.close()
