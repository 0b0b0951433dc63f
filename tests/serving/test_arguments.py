"""Options of `ultrafastbert serve`: values, and the API key that does not show."""

import pytest

from ultrafastbert.cli import main
from ultrafastbert.serving import server
from ultrafastbert.serving.arguments import ServeArguments


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("UFB_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "port is 65536; it should be an integer, from 0 to 65535"),
        ({"port": True}, "port is True; it should be an integer"),
        ({"model": ""}, "model is ''; it should be a non-empty value"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0; it should be greater than 0"),
        ({"max_length": -1}, "max_length is -1; it should be greater than 0"),
        ({"max_queue": 8, "max_batch_texts": 9}, "max_queue is 8; it should be at least 9"),
        ({"stop_seconds": 0}, "stop_seconds is 0; it should be greater than 0"),
        ({"optimize": False, "dtype": "float32"}, "optimize is False; dtype and int8 should be auto"),
        ({"optimize": False, "int8": False}, "optimize is False; dtype and int8 should be auto"),
    ],
)
def test_a_wrong_value_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ServeArguments(**({"model": "m"} | options))


def test_the_key_may_come_from_the_environment_and_is_never_printed(monkeypatch):
    assert ServeArguments(model="m").api_key is None
    monkeypatch.setenv("UFB_API_KEY", "from-environment")
    arguments = ServeArguments(model="m")
    assert arguments.api_key == "from-environment" and "from-environment" not in repr(arguments)
    assert ServeArguments(model="m", api_key="given").api_key == "given"
    monkeypatch.setenv("UFB_API_KEY", "")
    with pytest.raises(ValueError, match="UFB_API_KEY is ''; it should be a non-empty value, or unset"):
        ServeArguments(model="m")
    for key in ("", "two words", "schlüssel", "line\n"):
        with pytest.raises(ValueError, match="api_key is not usable in a header") as error:
            ServeArguments(model="m", api_key=key)
        assert not key or key not in str(error.value)


def test_options_of_the_command_line(monkeypatch):
    monkeypatch.setattr(server, "serve", lambda arguments: found.append(arguments))
    found = []
    main("serve", ["--model", "m", "--port", "0", "--int8", "false", "--dtype", "float32", "--max_length", "null"])
    assert found == [ServeArguments(model="m", port=0, int8=False, dtype="float32")]


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(server, "PACKAGES", ("fastapi", "no_such_package", "none_either"))
    with pytest.raises(SystemExit) as error:
        main("serve", ["--model", "m"])
    assert error.value.code == 1
    expected = "error: serve needs no_such_package, none_either: pip install 'ultrafastbert[serve]'\n"
    assert capsys.readouterr().err == expected


def test_an_address_in_use(capsys):
    with server.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as error:
            main("serve", ["--model", "m", "--port", str(port)])
    assert error.value.code == 1
    assert (
        f"error: host 127.0.0.1, port {port}: cannot listen there: Address already in use" in capsys.readouterr().err
    )
