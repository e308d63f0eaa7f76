"""Requests as bytes, over a socket of their own."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx


class Answer(NamedTuple):
    """One answer: its status, its headers by their names in lower case, and its body."""

    status: int
    headers: dict[str, str]
    body: bytes


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    """Open a connection to the service that `client` uses."""
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=20) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return everything that comes until the other side closes; a reset raises."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def answers(text: bytes) -> list[Answer]:
    """Return the answers in `text`, each with a Content-Length."""
    found = []
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", first)
        assert match, first
        size = int(headers["content-length"])
        found.append(Answer(int(match[1]), headers, text[:size]))
        text = text[size:]
    return found


def exchange(client: httpx.Client, request: bytes) -> list[Answer]:
    """Send a request that ends its connection; return every answer to it."""
    with connected(client) as connection:
        connection.sendall(request)
        return answers(read_to_end(connection))
