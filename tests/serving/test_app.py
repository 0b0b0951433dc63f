"""The routes: shapes of answers, errors in the form of each interface, limits, concurrent requests."""

import asyncio
import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.helpers import TEXTS, Gate, listening, save_classifier, serving
from tests.serving.test_engine import embed_directly
from ultrafastbert.serving.engine import Fill


@pytest.fixture(scope="module")
def client(encoder):
    with serving(encoder, max_batch_texts=8, max_queue=16, max_body_bytes=5000) as client:
        yield client


@pytest.fixture(scope="module")
def classes(classifier):
    with serving(classifier) as client:
        yield client


@pytest.fixture(scope="module")
def masks(small_model):
    with serving(small_model) as client:
        yield client


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def directly(encoder, texts):
    return np.stack([embed_directly(encoder, text) for text in texts])


# embeddings


def test_embed(client, encoder):
    expected = directly(encoder, TEXTS)
    answer = client.post("/embed", json={"inputs": TEXTS})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    np.testing.assert_allclose(answer.json(), unit(expected), atol=1e-5)
    raw = client.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    one = client.post("/embed", json={"inputs": TEXTS[1]}).json()
    np.testing.assert_allclose(one, unit(expected)[1:2], atol=1e-5)


def test_v1_embeddings(client, encoder):
    expected = unit(directly(encoder, TEXTS))
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "model": "any", "user": "u", "dimensions": 16}).json()
    assert [each["index"] for each in answer["data"]] == list(range(len(TEXTS)))
    assert {each["object"] for each in answer["data"]} == {"embedding"} and answer["object"] == "list"
    np.testing.assert_allclose([each["embedding"] for each in answer["data"]], expected, atol=1e-5)
    count = sum(len(text.split()) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count} and answer["model"] == encoder
    packed = client.post("/v1/embeddings", json={"input": TEXTS[2], "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(vector, expected[2], atol=1e-5)


def test_tokens_instead_of_texts(client, encoder):
    ids = client.service.engine.encode(TEXTS[:2])
    expected = unit(directly(encoder, TEXTS[:2]))
    many = client.post("/v1/embeddings", json={"input": [text.input_ids for text in ids]}).json()
    np.testing.assert_allclose([each["embedding"] for each in many["data"]], expected, atol=1e-5)
    one = client.post("/v1/embeddings", json={"input": ids[0].input_ids}).json()
    np.testing.assert_allclose([each["embedding"] for each in one["data"]], expected[:1], atol=1e-5)


def test_prompts_are_put_before_texts(encoder):
    def change(engine):
        engine.prompts, engine.default_prompt = {"query": "w9 ", "passage": "w8 "}, "w9 "

    with serving(encoder, change) as client:
        vectors = [
            client.post("/embed", json={"inputs": "w1"} | extra).json()[0]
            for extra in ({}, {"prompt_name": "query"}, {"prompt_name": "passage"})
        ]
        by_openai = client.post("/v1/embeddings", json={"input": "w1"}).json()["data"][0]["embedding"]
        wrong = client.post("/embed", json={"inputs": "w1", "prompt_name": "other"})
    expected = unit(directly(encoder, ["w9 w1", "w9 w1", "w8 w1", "w9 w1"]))
    np.testing.assert_allclose([*vectors, by_openai], expected, atol=1e-5)
    assert wrong.status_code == 422
    assert wrong.json()["error"] == "prompt_name is 'other'; it should be query, passage"


# classes and masks


def test_predict(classes):
    engine = classes.service.engine
    pairs = [["the cat sat"], ["a dog", "the dog ran"]]
    logits = engine.run(engine.encode(["the cat sat", ("a dog", "the dog ran")]))
    answers = classes.post("/predict", json={"inputs": pairs}).json()
    raw = classes.post("/predict", json={"inputs": pairs, "raw_scores": True}).json()
    for expected, answer, of_logits in zip(logits, answers, raw, strict=True):
        by_label = dict(zip(engine.labels, expected.softmax(-1).tolist(), strict=True))
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(by_label, abs=1e-5)
        assert [each["score"] for each in answer] == sorted(by_label.values(), reverse=True)
        assert sorted(each["score"] for each in of_logits) == pytest.approx(sorted(expected.tolist()), abs=1e-5)
    for single, batch in (("the cat sat", answers[0]), (["the cat sat"], answers[0]), (pairs[1], answers[1])):
        found = classes.post("/predict", json={"inputs": single}).json()
        assert [each["label"] for each in found] == [each["label"] for each in batch]


@pytest.mark.parametrize("inputs", [["a", "b", "c"], [["a", "b", "c"]], [["a"], "b"], [[]], [["a"], [1]], 5])
def test_predict_refuses_other_shapes(classes, inputs):
    answer = classes.post("/predict", json={"inputs": inputs})
    assert answer.status_code == 422 and answer.json()["error"].startswith("inputs")


def test_fill_mask(masks):
    answer = masks.post("/fill-mask", json={"inputs": "w1 [MASK] w3", "top_k": 3}).json()
    assert len(answer) == 3 and set(answer[0]) == {"score", "token", "token_str", "sequence"}
    many = masks.post("/fill-mask", json={"inputs": ["w1 [MASK] w3", "[MASK] [MASK]"], "top_k": 3}).json()
    assert [fill["token"] for fill in many[0]] == [fill["token"] for fill in answer]
    assert [len(fills) for fills in many[1]] == [3, 3] and "[MASK]" in many[1][0][0]["sequence"]
    none = masks.post("/fill-mask", json={"inputs": ["[MASK]", "w1"]})
    assert none.status_code == 422
    assert none.json()["error"] == "inputs[1] has no mask; it should have at least one [MASK]"
    for extra, message in (
        ({"top_k": 101}, "top_k is 101; it should be less than or equal to 100"),
        ({"parameters": {"top_k": 0}}, "parameters.top_k is 0; it should be greater than or equal to 1"),
        ({"parameters": {"targets": ["w1"]}}, "parameters.targets is not a field of this request"),
        ({"top_k": 1, "parameters": {"top_k": 1}}, "top_k is given twice; it should be given once"),
    ):
        wrong = masks.post("/fill-mask", json={"inputs": "[MASK]"} | extra)
        assert wrong.status_code == 422 and wrong.json()["error"].startswith(message)


def test_other_tasks_say_which_model_has_them(client, classes, masks):
    bodies = {"/embed": {"inputs": "w1"}, "/predict": {"inputs": "w1"}, "/fill-mask": {"inputs": "[MASK]"}}
    for server, path in ((client, "/embed"), (classes, "/predict"), (masks, "/fill-mask")):
        for other in bodies.keys() - {path}:
            answer = server.post(other, json=bodies[other])
            assert answer.status_code == 422
            assert answer.json()["error"].startswith(f"this server answers {path}; for this path it should have a")
    answer = masks.post("/v1/embeddings", json={"input": "w1"})
    assert answer.status_code == 422 and "an encoder, or a model of sentence" in answer.json()["error"]["message"]


def test_the_client_of_huggingface_hub(encoder, classifier, small_model):
    with listening(encoder) as (_, url):
        client = InferenceClient(token="none", timeout=60)
        vectors = client.feature_extraction(
            "w1 w2", normalize=False, truncation_direction="left", model=f"{url}/embed"
        )
        np.testing.assert_allclose(vectors, directly(encoder, ["w1 w2"]), atol=1e-5)
    with listening(small_model) as (service, url):
        fills = client.fill_mask("w1 [MASK]", top_k=2, model=f"{url}/fill-mask")
        (text,) = service.engine.encode(["w1 [MASK]"])
        assert [fill.token for fill in fills] == [fill.token for fill in service.engine.run([text])[0][0][:2]]
    with listening(classifier) as (_, url):
        # this client takes the first of a batch
        (best,) = client.text_classification([["the cat sat"]], top_k=1, model=f"{url}/predict")
        assert best.label in ("good", "bad", "so-so") and best.score > 1 / 3


# limits and wrong requests

OPENAI = [
    ({}, 422, "input is missing"),
    ({"input": 5}, 422, "input is 5; it should be a text, a list of texts, a list of token ids or a list of such"),
    ({"input": ["w1", None]}, 422, "input[1] is None; it should be a text; input should be a text, a list"),
    ({"input": [1, True]}, 422, "input[0] is 1; it should be a text"),
    ({"input": [1, 60]}, 422, "input has the token 60; it should be from 0 to 59"),
    ({"input": [[1], [2, -3]]}, 422, "input[1] has the token -3; it should be from 0 to 59"),
    ({"input": []}, 400, "input is empty; it should have at least one text"),
    ({"input": "w1", "dimensions": 8}, 422, "dimensions is 8; it should be 16, those of the model, or not be given"),
    ({"input": "w1", "encoding_format": "hex"}, 422, "encoding_format is 'hex'; it should be 'float' or 'base64'"),
    ({"input": [[1] * 33, [1]]}, 413, "input[0] has 33 tokens; it should have at most 32"),
]
TEI = [
    ({}, 422, "inputs is missing"),
    ({"inputs": ["w1", 5]}, 422, "inputs[1] is 5; it should be a text"),
    ({"inputs": {"a": 1}}, 422, "inputs is {'a': 1}; it should be a text or a list of texts"),
    ({"inputs": "\ud800"}, 422, "inputs is '\\ud800'; it should be valid Unicode, without surrogates"),
    ({"inputs": "w1", "truncate": "yes"}, 422, "truncate is 'yes'; it should be a valid boolean"),
    (
        {"inputs": "w1", "truncation_direction": "up"},
        422,
        "truncation_direction is 'Up'; it should be 'Left' or 'Righ",
    ),
    ({"inputs": "w1", "trunkate": True}, 422, "trunkate is not a field of this request"),
    ({"inputs": "w1", "\ud800": True}, 422, "'\\ud800' is not the name of a field; it should be valid Unicode"),
    ({"inputs": "w1", "prompt_name": "query"}, 422, "prompt_name is 'query'; it should be not given, because the mod"),
    ({"inputs": []}, 400, "inputs is empty; it should have at least one text"),
    ({"inputs": ["w1", ""]}, 422, "inputs[1] has no tokens; it should have at least one"),
    ({"inputs": "w1 " * 33}, 413, "inputs has 33 tokens; it should have at most 32, unless it is truncated"),
    ({"inputs": ["w1"] * 9}, 413, "inputs has 9 texts; it should have at most 8, the server's limit"),
    ({"inputs": "w1 " * 2000}, 413, "the body is too large; it should have at most 5000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), OPENAI)
def test_errors_of_v1_name_the_field_in_the_form_of_openai(client, body, status, message):
    answer = client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and error["message"].startswith(message)
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("body", "status", "message"), TEI)
def test_errors_name_the_field_in_the_form_of_tei(client, body, status, message):
    content = json.dumps(body)  # with escapes, as httpx cannot send half of a character otherwise
    answer = client.post("/embed", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and answer.json()["error"].startswith(message)
    assert answer.json()["error_type"] == ("Empty" if status == 400 else "Validation")


def test_bodies_that_are_no_json_object(client):
    headers = {"Content-Type": "application/json"}
    broken = client.post("/embed", content='{"inputs": ', headers=headers)
    assert broken.status_code == 422 and broken.json()["error"].startswith("the body is not JSON: ")
    nested = client.post("/embed", content="[" * 2400 + "]" * 2400, headers=headers)
    assert nested.status_code in (400, 422) and nested.json()["error_type"] == "Validation"
    for content, type in (("", "application/json"), ("[1]", "application/json"), ('{"inputs": "a"}', "text/plain")):
        answer = client.post("/embed", content=content, headers={"Content-Type": type})
        assert answer.status_code == 422 and answer.json()["error"].startswith("the body should be a JSON object")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ("input", "inputs", "truncate", "normalize", "top_k", "parameters", "dimensions", "raw_scores", "prompt_name")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)) | JSON, st.booleans())
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_no_body_is_a_fault_of_the_server(client, classes, masks, body, broken):
    content = json.dumps(body)[: -1 if broken else None]
    servers = {"/embed": client, "/v1/embeddings": client, "/predict": classes, "/fill-mask": masks}
    for path, server in servers.items():
        answer = server.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 413, 422), (path, content, answer.text)
        assert answer.status_code == 200 or answer.json()["error"]


@pytest.mark.parametrize("content", [b"\xff", b'{"inputs": "\xff"}', b"\x00", b'{"inputs": 1' + b"0" * 4900 + b"}"])
def test_bodies_that_cannot_be_read(client, content):
    answer = client.post("/embed", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["error_type"] == "Validation"


def test_bodies_without_a_stated_size_are_limited_while_they_are_read(client):
    parts = (b" " * 1000 for _ in range(6))
    answer = client.post("/embed", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and "at most 5000 bytes" in answer.json()["error"]


def test_unknown_paths_and_methods(client):
    assert client.get("/nowhere").status_code == 404 and client.get("/embed").status_code == 405
    assert client.get("/nowhere").json()["error"] == "Not Found"
    assert client.get("/v1/nowhere").json()["error"]["message"] == "Not Found"


def test_truncation(client, encoder):
    long = " ".join(f"w{index}" for index in range(40))
    words = long.split()
    expected = unit(directly(encoder, [" ".join(words[:32]), " ".join(words[8:])]))
    vectors = [
        client.post("/embed", json={"inputs": long, "truncate": True, "truncation_direction": side}).json()[0]
        for side in ("Right", "left")
    ]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    with serving(encoder, truncate=True) as always:
        assert always.post("/embed", json={"inputs": long}).json()[0] == pytest.approx(vectors[0], abs=1e-5)
        assert always.post("/v1/embeddings", json={"input": [[1] * 40]}).json()["usage"]["total_tokens"] == 32
        assert always.post("/embed", json={"inputs": long, "truncate": False}).status_code == 413


def test_an_api_key(encoder):
    body = {"inputs": "w1"}
    with serving(encoder, api_key="secret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.post("/embed", json=body, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"].startswith("the API key is") and "secret" not in answer.text
        assert client.post("/v1/embeddings", content="no JSON").json()["error"]["code"] == "invalid_api_key"
        assert client.post("/embed", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        assert client.get("/info").status_code == 401


# information


def test_information(client, classes, masks, encoder):
    info = client.get("/info").json()
    assert info["model_id"] == encoder and info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"], info["model_dtype"]) == (32, 8, "float32")
    assert classes.get("/info").json()["model_type"]["classifier"]["label2id"] == {"good": 0, "bad": 1, "so-so": 2}
    assert masks.get("/info").json()["model_type"] == {"fill-mask": {"mask_token": "[MASK]"}}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [encoder]


def test_health(encoder):
    with serving(encoder) as client:
        assert client.get("/health").status_code == 200
        client.service.batcher.close()
        answer = client.get("/health")
        assert answer.status_code == 503 and answer.json()["error_type"] == "Unhealthy"
        assert client.post("/embed", json={"inputs": "w1"}).status_code == 503


def test_metrics(encoder):
    with serving(encoder) as client:
        client.post("/embed", json={"inputs": ["w1 w2", "w3"]})
        client.post("/embed", json={"inputs": 5})
        client.get("/invented/by/a/client")
        lines = client.get("/metrics").text.splitlines()
    for line in (
        'ufb_requests_total{endpoint="/embed",status="200"} 1.0',
        'ufb_requests_total{endpoint="/embed",status="422"} 1.0',
        'ufb_requests_total{endpoint="other",status="404"} 1.0',
        'ufb_request_duration_seconds_count{endpoint="/embed"} 2.0',
        "ufb_batch_texts_sum 2.0",
        "ufb_batch_tokens_sum 3.0",
        "ufb_tokens_total 3.0",
        "ufb_queue_texts 0.0",
    ):
        assert line in lines


# concurrent requests


def test_requests_beyond_the_queue_are_refused(encoder):
    gate = Gate()
    with serving(encoder, gate, max_queue=4, max_batch_texts=4) as client:

        async def ask(texts):
            transport = httpx.ASGITransport(client.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as session:
                return await session.post("/embed", json={"inputs": texts}, timeout=60)

        async def main():
            accepted = [asyncio.create_task(ask(["w1", "w2", "w3"])), asyncio.create_task(ask(["w4"]))]
            while client.service.batcher.admitted < 4:
                await asyncio.sleep(0.001)
            refused = await ask(["w5"])
            gate.open.set()
            return refused, [await task for task in accepted], await ask(["w5"])

        refused, accepted, later = asyncio.run(main())
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert refused.json()["error_type"] == "Overloaded"
    assert refused.json()["error"].startswith("the server is overloaded: 4 texts are waiting or computed")
    assert [answer.status_code for answer in [*accepted, later]] == [200, 200, 200]


def test_requests_share_batches(encoder):
    gate = Gate()
    with listening(encoder, gate) as (service, url), ThreadPoolExecutor(5) as pool:
        first = pool.submit(httpx.post, f"{url}/embed", json={"inputs": "w1"}, timeout=60)
        assert gate.entered.wait(60)
        others = [pool.submit(httpx.post, f"{url}/embed", json={"inputs": text}, timeout=60) for text in TEXTS[:4]]
        wait_for(lambda: service.batcher.admitted == 5)
        wait_for(lambda: len(service.batcher._waiting) == 4)
        gate.open.set()
        answers = [future.result().json()[0] for future in [first, *others]]
    assert [len(batch) for batch in gate.batches] == [1, 4]
    np.testing.assert_allclose(answers, unit(directly(encoder, ["w1", *TEXTS[:4]])), atol=1e-5)


def test_texts_of_clients_that_disconnected_are_not_computed(encoder):
    gate = Gate()
    with listening(encoder, gate) as (service, url), ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx.post, f"{url}/embed", json={"inputs": "w1"}, timeout=60)
        assert gate.entered.wait(60)
        body = b'{"inputs": "w2 w3"}'
        head = (
            f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(url.removeprefix("http://").split(":")) as connection:
            connection.sendall(head.encode() + body)
            wait_for(lambda: service.batcher.admitted == 2)
            wait_for(lambda: len(service.batcher._waiting) == 1)
        wait_for(lambda: service.batcher.admitted == 1)  # its room is free at once
        last = pool.submit(httpx.post, f"{url}/embed", json={"inputs": "w4"}, timeout=60)
        gate.open.set()
        assert first.result().status_code == last.result().status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
    assert 'ufb_requests_total{endpoint="/embed",status="499"} 1.0' in metrics
    computed = {text for batch in gate.batches for text in batch}
    assert computed == {tuple(text.input_ids) for text in service.engine.encode(["w1", "w4"])}


def test_no_answer_is_swapped_between_many_clients(encoder):
    with listening(encoder, max_batch_tokens=64) as (service, url):
        words = [f"w{index}" for index in range(55)]
        texts = [f"{first} {words[(7 * index + 3) % 55]} {first}" for index, first in enumerate(words)]
        alone = np.stack(
            [vector.numpy() for text in texts for vector in service.engine.run(service.engine.encode([text]))]
        )
        expected = unit(alone)
        distances = np.linalg.norm(expected[:, None] - expected[None], axis=-1) + 9 * np.eye(len(texts))
        assert distances.min() > 1e-2
        barrier = threading.Barrier(8)

        def ask(client_number):
            barrier.wait(60)
            with httpx.Client(base_url=url, timeout=60) as session:
                for turn in range(12):
                    chosen = [(client_number * 17 + turn * 5 + place) % 55 for place in range(1 + turn % 4)]
                    answer = session.post("/embed", json={"inputs": [texts[index] for index in chosen]})
                    np.testing.assert_allclose(answer.json(), expected[chosen], atol=1e-4)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))


def test_an_exception_of_the_model_is_answered_and_the_server_lives_on(encoder, caplog):
    def change(engine):
        run = engine.run

        def fail(batch):
            if any(text.input_ids == [5] * 3 for text in batch):
                raise RuntimeError("out of luck")
            return run(batch)

        engine.run = fail

    with serving(encoder, change) as client:
        bad = client.service.engine.tokenizer.decode([5])
        answer = client.post("/embed", json={"inputs": ["w1", f"{bad} {bad} {bad}"]})
        assert answer.status_code == 500
        assert answer.json() == {"error": "the model failed: RuntimeError: out of luck", "error_type": "Backend"}
        by_openai = client.post("/v1/embeddings", json={"input": f"{bad} {bad} {bad}"})
        assert by_openai.status_code == 500 and by_openai.json()["error"]["type"] == "server_error"
        assert client.post("/embed", json={"inputs": "w1"}).status_code == 200
        assert client.get("/health").status_code == 200
    assert "out of luck" in caplog.text  # with its traceback


def test_outputs_that_are_not_numbers_are_an_error(encoder):
    def change(engine):
        engine.run = lambda batch: [torch.full((16,), torch.nan if text.length == 2 else 1.0) for text in batch]

    with serving(encoder, change) as client:
        answer = client.post("/embed", json={"inputs": ["w1", "w1 w2"]})
        assert answer.status_code == 500
        assert answer.json()["error"] == "the model's output for inputs[1] has numbers that are not finite"
        assert client.post("/embed", json={"inputs": ["w1"]}).status_code == 200


def test_probabilities_that_are_not_numbers_are_an_error(small_model):
    def change(engine):
        engine.run = lambda batch: [[[Fill(float("nan"), 1)]] for text in batch]

    with serving(small_model, change) as client:
        answer = client.post("/fill-mask", json={"inputs": "[MASK]"})
        assert answer.status_code == 500
        assert answer.json()["error"] == "the model's output for inputs has numbers that are not finite"


def test_a_fault_of_the_server_itself_is_answered(encoder, monkeypatch):
    with serving(encoder) as client:
        monkeypatch.setattr(client.service, "compute", None)
        answer = client.post("/embed", json={"inputs": "w1"})
        assert answer.status_code == 500 and answer.json()["error"] == "the server failed; see its log"
        assert 'endpoint="/embed",status="500"} 1.0' in client.get("/metrics").text


def test_labels_of_a_model_without_names(tmp_path):
    with serving(save_classifier(tmp_path, num_labels=2)) as client:
        answer = client.post("/predict", json={"inputs": "the cat"}).json()
        assert {each["label"] for each in answer} == {"LABEL_0", "LABEL_1"}


def wait_for(condition):
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("did not happen within a minute")
