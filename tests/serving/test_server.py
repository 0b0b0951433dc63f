"""The program: a process that OpenAI's client talks to, and how it stops."""

import base64
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.serving.helpers import ROOT, TEXTS, Gate, arguments_for, process
from tests.serving.test_app import directly, unit, wait_for
from ultrafastbert.serving.engine import load_engine
from ultrafastbert.serving.server import bind, run
from ultrafastbert.utils.errors import UserError

OPTIONS = ["--port", "0", "--dtype", "float32", "--int8", "false", "--threads", "1"]
SLOW = "tests.serving.slow_server"


def test_the_client_of_openai(encoder):
    import openai  # takes a second

    words = ["--model", encoder, *OPTIONS, "--max_batch_texts", "8"]
    with process(*words, environment={"UFB_API_KEY": "secret"}) as (server, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        expected = unit(directly(encoder, TEXTS))
        # without a format the client asks for base64 and decodes it
        for extra in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer = client.embeddings.create(model="any", input=TEXTS, **extra)
            vectors = [each.embedding for each in answer.data]
            if extra.get("encoding_format") == "base64":  # asked for by name, it stays as it is
                vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert answer.usage.total_tokens == sum(len(text.split()) for text in TEXTS)
        assert [model.id for model in client.models.list()] == [encoder]
        one = client.embeddings.create(model="any", input=TEXTS[0]).data[0].embedding
        np.testing.assert_allclose(one, expected[0], atol=1e-5)
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions is 8; it should be 16"):
            client.embeddings.create(model="any", input="w1", dimensions=8)
        with pytest.raises(openai.APIStatusError, match="input has 33 tokens; it should have at most 32") as error:
            client.embeddings.create(model="any", input="w1 " * 33)
        assert error.value.status_code == 413 and error.value.code == "too_large"
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
            stranger.embeddings.create(model="any", input="w1")
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and output == "stopped; all requests were answered\n"


def test_sigterm_while_requests_are_in_flight(encoder, tmp_path):
    """All that were accepted are answered, whether they are in a batch or wait; new connections are refused."""
    gate = tmp_path / "gate"
    words = [str(gate), "--model", encoder, *OPTIONS, "--max_batch_tokens", "8"]
    with process(*words, module=SLOW) as (server, url), ThreadPoolExecutor(12) as pool:
        texts = [f"w{index} w{index + 1} w{index}" for index in range(12)]
        answers = [pool.submit(httpx.post, f"{url}/embed", json={"inputs": text}, timeout=60) for text in texts]
        wait_for(lambda: "ufb_queue_texts 12.0" in httpx.get(f"{url}/metrics").text)
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: refused(url))
        assert server.poll() is None and not any(answer.done() for answer in answers)
        gate.touch()
        vectors = [answer.result().json()[0] for answer in answers]
        output, errors = server.communicate(timeout=60)
    assert server.returncode == 0 and output == "stopped; all requests were answered\n" and "error" not in errors
    np.testing.assert_allclose(vectors, unit(directly(encoder, texts)), atol=1e-5)


def test_requests_that_are_not_answered_in_time(encoder, capsys):
    """In this process, whose main thread the signal stops."""
    arguments, gate = arguments_for(encoder, stop_seconds=0.2), Gate()
    engine = load_engine(arguments)
    gate(engine)
    gate.open.set()  # for the start

    def stop_while_a_request_is_computed(url):
        wait_for(lambda: not refused(url))
        gate.open.clear()
        gate.entered.clear()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.post, f"{url}/embed", json={"inputs": "w1"}, timeout=60)
            assert gate.entered.wait(60)
            os.kill(os.getpid(), signal.SIGTERM)
            error = answer.exception()
        gate.open.set()  # lets the batch end
        return error or answer.result().status_code

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with bind("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = pool.submit(stop_while_a_request_is_computed, url)
        message = r"1 requests were not answered within 0.2 seconds of the signal \(stop_seconds\)"
        with pytest.raises(UserError, match=message):
            run(engine, arguments, listener)
        assert isinstance(client.result(), httpx.HTTPError) or client.result() >= 500
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client", "sentence_transformers"))
from ultrafastbert.cli import main
main("serve", ["--model", sys.argv[1]])
"""


def test_without_the_optional_packages(encoder):
    done = subprocess.run([sys.executable, "-c", WITHOUT, encoder], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: serve needs fastapi, uvicorn, prometheus_client: pip install 'ultrafastbert[serve]'\n"
    )


def refused(url):
    try:
        httpx.get(f"{url}/health", timeout=5)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        pass
    time.sleep(0.01)
    return False
