"""Small models, saved once for all tests of the server."""

import pytest

from tests.serving.helpers import save_classifier, save_encoder


@pytest.fixture(scope="session")
def tokenizer_directory(packed_directory):
    return packed_directory / "tokenizer"


@pytest.fixture(scope="session")
def encoder(tokenizer_directory, tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("served") / "encoder", tokenizer_directory)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    labels = {0: "good", 1: "bad", 2: "so-so"}
    return save_classifier(tmp_path_factory.mktemp("served") / "classifier", num_labels=3, id2label=labels)
