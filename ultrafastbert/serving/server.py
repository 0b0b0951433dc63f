"""`ultrafastbert serve`: starts the server, and stops it when what it accepted is answered."""

import importlib.util
import os
import signal
import socket

import torch

from ultrafastbert.serving.arguments import ServeArguments
from ultrafastbert.serving.engine import Engine, load_engine
from ultrafastbert.utils.errors import UserError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
KEEP_ALIVE = 60
"""How long a connection without a request stays open: longer than clients keep theirs. [seconds]"""


def serve(arguments: ServeArguments) -> None:
    """Serves a model until SIGTERM or SIGINT; then answers what it has accepted, and returns.

    Raises:
        UserError: packages are missing, the address cannot be used, the model cannot be served, or requests were not
            answered within `stop_seconds` of the signal.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'ultrafastbert[serve]'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are for the model
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with bind(arguments.host, arguments.port) as listener:  # before the model is loaded, which takes longer
        run(load_engine(arguments), arguments, listener)


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket with this address, which does not listen yet.

    Raises:
        UserError: the address does not exist here, or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"host is {host}; it should be an address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"host {host}, port {port}: cannot listen there: {error.strerror}") from error
    return listener


def run(engine: Engine, arguments: ServeArguments, listener: socket.socket) -> None:
    """Serves an engine at a socket that `bind` returned; see `serve`. It needs the optional packages."""
    import uvicorn

    from ultrafastbert.serving.app import create_app
    from ultrafastbert.serving.service import Service

    with Service(engine, arguments) as service:
        service.warm_up()
        config = uvicorn.Config(
            create_app(service),
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=arguments.stop_seconds,  # pyright: ignore[reportArgumentType] - a number
        )
        server = uvicorn.Server(config)

        def stop(*_: object) -> None:
            server.should_exit = True

        # uvicorn has handlers of its own while it runs, and afterwards raises what it caught again, for these
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        listener.listen(config.backlog)
        print(f"serving {arguments.model} (/{engine.task}) at {_url(listener)}", flush=True)
        server.run(sockets=[listener])
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.interrupted:
        raise UserError(
            f"{service.interrupted} requests were not answered within {arguments.stop_seconds:g} seconds of the signal"
            " (stop_seconds)"
        )
    print("stopped; all requests were answered", flush=True)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
