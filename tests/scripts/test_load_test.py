"""The load test: what it draws, measures and reports, and that the control answers like the server."""

import random

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.scripts.helpers import load_script
from tests.serving.helpers import listening, save_encoder

script = load_script("load_test")


@pytest.fixture
def encoder(packed_directory, tmp_path):
    return save_encoder(tmp_path / "encoder", packed_directory / "tokenizer")


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_server_is_measured(encoder, capsys, path):
    with listening(encoder, truncate=True, api_key="secret") as (_, url):
        options = {"clients": 2, "seconds": 0.3, "warmup": 0.1, "texts": 2, "path": path}
        script.main(script.Arguments(url=url, api_key="secret", **options))
        assert "2 clients, 2 texts a request" in (output := capsys.readouterr().out)
        assert "requests/s" in output and "p99" in output and "errors: none" in output
        with pytest.raises(script.UserError, match="no request to .* was answered"):
            script.main(script.Arguments(url=url, api_key="wrong", **options))
        assert "with 401" in capsys.readouterr().out


def test_a_server_that_is_not_there(capsys):
    with pytest.raises(script.UserError, match="no request to http://127.0.0.1:9/embed was answered"):
        script.main(script.Arguments(url="http://127.0.0.1:9", clients=1, seconds=0.1, warmup=0))
    assert "with no answer" in capsys.readouterr().out


def test_rates_latencies_and_errors_are_reported():
    arguments = script.Arguments(url="http://server", seconds=2.0, texts=3)
    answers = [script.Answer(float(index), 0.001 * index, 200) for index in range(1, 101)]
    report = script.report(arguments, [*answers, script.Answer(1.0, 1.0, 503), script.Answer(1.0, 1.0, 0)])
    assert "50.0 requests/s, 150.0 texts/s over 2 s" in report
    assert "p50 50.5 ms, p99 99.0 ms, max 100.0 ms" in report
    assert "errors: 1 with 503, 1 with no answer" in report


def test_texts_are_drawn_by_the_seed_with_realistic_lengths():
    texts = [[script.draw_text(random.Random("0-1")) for _ in range(3)] for _ in range(2)]
    assert texts[0] == texts[1]
    generator = random.Random(0)
    lengths = sorted(len(script.draw_text(generator).split()) for _ in range(2000))
    assert lengths[0] >= 3 and lengths[-1] <= 200 and 20 < lengths[1000] < 28


def test_the_control_answers_like_the_server(encoder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["w1 w2", "w3"]
    client = TestClient(script.control(encoder))
    expected = sentence_transformers.SentenceTransformer(encoder, device="cpu").encode(
        texts, normalize_embeddings=True
    )
    np.testing.assert_allclose(
        client.post("/embed", json={"inputs": texts, "truncate": True}).json(), expected, atol=1e-6
    )
    answer = client.post("/v1/embeddings", json={"input": texts[0], "model": "any"}).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected[0], atol=1e-6)


def test_what_to_do_is_given():
    for options in ({}, {"url": "http://a", "serve_sentence_transformers": "b"}):
        with pytest.raises(ValueError, match="one of url and serve_sentence_transformers should be given"):
            script.Arguments(**options)
