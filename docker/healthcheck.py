"""Exit with 0 when a Flower daemon answers, with 1 when it does not; for container health checks.

healthcheck.py http https://172.31.250.2:8000/health --ca /run/efface/ca.crt   (SuperLink)
healthcheck.py unix /run/node/node.sock                                        (a site's SuperNode)
healthcheck.py grpc 127.0.0.1:9095                                             (SuperExec)
"""

import argparse
import socket
import ssl
import sys
import urllib.request
from pathlib import Path

SECONDS = 5.0  # below the `timeout` of compose.yaml


def http_is_healthy(address: str, authority: Path | None) -> bool:
    """Return whether GET `address` answers 200; TLS is checked with `authority`."""
    context = ssl.create_default_context(cafile=authority) if authority else None
    with urllib.request.urlopen(address, timeout=SECONDS, context=context) as answer:
        return bool(answer.status == 200)


def socket_is_healthy(path: str) -> bool:
    """Return whether GET /health over the Unix socket at `path` answers 200."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(b"GET /health HTTP/1.0\r\nHost: node\r\n\r\n")
        return connection.recv(64).split(b"\r\n")[0].split(b" ")[1:2] == [b"200"]


def grpc_is_healthy(address: str) -> bool:
    """Return whether the gRPC health service at `address` says SERVING."""
    import grpc  # here, because the HTTP checks run every few seconds and need no gRPC
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> int:
    """Check what the command line names."""
    parser = argparse.ArgumentParser(description="Ask a Flower daemon whether it is healthy.")
    parser.add_argument("protocol", choices=["http", "unix", "grpc"])
    parser.add_argument("address")
    parser.add_argument("--ca", type=Path)
    options = parser.parse_args()
    try:
        if options.protocol == "http":
            healthy = http_is_healthy(options.address, options.ca)
        elif options.protocol == "unix":
            healthy = socket_is_healthy(options.address)
        else:
            healthy = grpc_is_healthy(options.address)
    except Exception as error:  # whatever went wrong, the daemon did not answer
        print(f"{options.address} is not healthy: {error}", file=sys.stderr)
        return 1
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
