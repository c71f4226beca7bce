"""How the executor and its gate speak to the SuperNode: HTTP over one Unix socket, no port."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

SECONDS: Final = 30.0  # for an answer; the SuperNode is on this machine


class RuntimeSocketClient(RuntimeHttpClient):
    """Flower's client of a SuperNode's Runtime API, over a Unix socket."""

    def __init__(self, socket: Path, token: str | None) -> None:
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec")
        ]
        if token is not None:
            interceptors = [
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ]
        retries = make_simple_http_retry_invoker() if token is not None else None
        # No TLS on a socket of this machine (verify): nothing has to be loaded for it either.
        super().__init__(
            "http://node", interceptors=interceptors, verify=False, retry_invoker=retries
        )
        self._client.close()  # that one dials a port
        transport = httpx.HTTPTransport(verify=False, uds=str(socket))
        self._client = httpx.Client(transport=transport, timeout=SECONDS)


@contextmanager
def connected(socket: Path, token: str | None = None) -> Iterator[RuntimeSocketClient]:
    """Yield a client of the SuperNode at `socket`.

    Args:
        socket: Where it listens.
        token: Of one task; None for the executor, which asks for tasks.
    """
    client = RuntimeSocketClient(socket, token)
    try:
        yield client
    finally:
        client.close()
