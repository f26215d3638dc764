"""Signed messages between two processes that know the same token: JSON of bounded size, over a socket.

    coordinator ─▶ greeting, nonce_c
    worker      ─▶ nonce_w, HMAC(token, "worker", nonce_c, nonce_w)
    coordinator ─▶ HMAC(token, "coordinator", nonce_c, nonce_w)
    then both   ─▶ length, HMAC(key, number of the message, text), text

with a key for each way, HMAC(token, "from …", nonce_c, nonce_w). All are HMAC-SHA256. So a message that is changed,
repeated, left out, turned round or taken from another connection is noticed. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from zoreward.records import InputError, RanksError

TOKEN, TOKEN_FILE = "ZOREWARD_TOKEN", "ZOREWARD_TOKEN_FILE"
SHORTEST_TOKEN = 16
LONGEST = 16 << 20
"""Bytes of a message, at most: a line of a journal takes up to 4 MiB, and its quotes are escaped."""
SECONDS_TO_GREET = 10.0
SECONDS_TO_MEET = 600.0

_GREETING = b"zoreward elastic 1\n"
_SIZE, _HEAD = 32, struct.Struct("!I32s")


class Channel:
    """A connection to somebody who has proved to know the token.

    Args:
        connection: the socket.
        token: the secret that both know.
        nonces: what both have drawn for this connection.
        own: "worker" or "coordinator", which this is, and `other`, which is at the other end.
    """

    def __init__(self, connection: socket.socket, token: str, nonces: bytes, own: str, other: str):
        self._socket, self._sent, self._received = connection, 0, 0
        self._key_out, self._key_in = (_signed(token.encode(), f"from {who}", nonces) for who in (own, other))
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send what JSON can hold; a number arrives with all its bits.

        Raises:
            OSError: the other end is gone.
        """
        text = json.dumps(message).encode("ascii")
        tag = _signed(self._key_out, str(self._sent), text)
        self._sent += 1
        self._socket.sendall(_HEAD.pack(len(text), tag) + text)

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """Return the next message.

        Args:
            seconds: how long it is waited for; None: as long as the connection lasts.

        Raises:
            OSError: the other end is gone, or silent; or what has come is not signed, too long or no object.
        """
        until = None if seconds is None else time.monotonic() + seconds
        length, tag = _HEAD.unpack(_read(self._socket, _HEAD.size, until))
        if length > LONGEST:
            raise ConnectionError(f"a message of {length} bytes")
        text = _read(self._socket, length, until)
        if not hmac.compare_digest(tag, _signed(self._key_in, str(self._received), text)):
            raise ConnectionError("a message that is not signed")
        self._received += 1
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise ConnectionError("a message that is not JSON") from None
        if not isinstance(message, dict):
            raise ConnectionError("a message that is no object")
        return message

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def accepted(connection: socket.socket, token: str) -> Channel:
    """Greet a stranger, and return the channel to it once it has proved to know the token. It is told nothing before.

    Raises:
        OSError: it does not, or takes longer than some seconds; 64 bytes of it are read at most.
    """
    until, nonce = time.monotonic() + SECONDS_TO_GREET, os.urandom(_SIZE)
    connection.settimeout(SECONDS_TO_GREET)
    connection.sendall(_GREETING + nonce)
    answer = _read(connection, 2 * _SIZE, until)
    nonces = nonce + answer[:_SIZE]
    if not hmac.compare_digest(answer[_SIZE:], _signed(token.encode(), "worker", nonces)):
        raise ConnectionError("another token")
    connection.sendall(_signed(token.encode(), "coordinator", nonces))
    return Channel(connection, token, nonces, "coordinator", "worker")


def connected(address: str, token: str, seconds: float = SECONDS_TO_MEET) -> Channel:
    """Return the channel to the coordinator at an address, once both have proved to know the token.

    Args:
        address: tcp://host:port.
        token: the secret.
        seconds: how long it is waited for somebody to listen there.

    Raises:
        InputError: that is no address, or somebody is there who does not know the token.
        RanksError: nobody is there.
    """
    place, until = place_of_address(address), time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection(place, timeout=SECONDS_TO_GREET)
            break
        except (OSError, UnicodeError) as error:  # the latter of a name that can be no host's
            if time.monotonic() > until or isinstance(error, socket.gaierror | UnicodeError):
                hint = "Start the run first: zoreward tune … --elastic tcp://host:port"
                why = getattr(error, "strerror", None) or error
                raise RanksError(f"nobody listens at {address}: {why}", hint=hint) from error
            time.sleep(0.2)
    try:
        greeted = time.monotonic() + SECONDS_TO_GREET
        greeting = _read(connection, len(_GREETING) + _SIZE, greeted)
        if not greeting.startswith(_GREETING):
            raise ConnectionError("another greeting")
        nonces = greeting[len(_GREETING) :] + os.urandom(_SIZE)
        connection.sendall(nonces[_SIZE:] + _signed(token.encode(), "worker", nonces))
        proof = _read(connection, _SIZE, greeted)
        if not hmac.compare_digest(proof, _signed(token.encode(), "coordinator", nonces)):
            raise ConnectionError("another token")
        return Channel(connection, token, nonces, "worker", "coordinator")
    except OSError as error:
        connection.close()
        message = f"whoever listens at {address} is no coordinator with this token"
        raise InputError(message, hint=f"Set {TOKEN} to the token that tune printed.") from error


def place_of_address(address: str) -> tuple[str, int]:
    """Return host and port of an address; without a host this machine alone.

    Raises:
        InputError: it is none.

    >>> place_of_address("tcp://:29500"), place_of_address("tcp://[::1]:0")
    (('127.0.0.1', 29500), ('::1', 0))
    """
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        port = None
    if port is None or parts.scheme != "tcp" or parts.path.strip("/") or parts.query or parts.username is not None:
        raise InputError(f"{address!r} is no address", hint="Write tcp://host:port, such as tcp://127.0.0.1:29500.")
    return parts.hostname or "127.0.0.1", port


def given_token() -> str | None:
    """Return the token that the environment gives, or a file that it names; None where it gives none.

    Raises:
        InputError: the file cannot be read, or the token is so short that it can be guessed.
    """
    token, file = os.environ.get(TOKEN), os.environ.get(TOKEN_FILE)
    if token is None and file is None:
        return None
    if token is None:
        try:
            token = Path(str(file)).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{TOKEN_FILE}={file} cannot be read", hint="Name a file that holds the token.") from error
    token = token.strip()
    if len(token) < SHORTEST_TOKEN:
        hint = f"Leave it out for a random one, or take at least {SHORTEST_TOKEN} characters."
        raise InputError(f"a token of {len(token)} characters can be guessed", hint=hint)
    return token


def new_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(24)


def _signed(key: bytes, what: str, text: bytes) -> bytes:
    return hmac.new(key, what.encode() + b"\0" + text, hashlib.sha256).digest()


def _read(connection: socket.socket, size: int, until: float | None) -> bytes:
    """So many bytes; an OSError where the connection ends, or time is over, before they have come."""
    parts, left = [], size
    while left:
        if until is not None:
            connection.settimeout(max(0.001, until - time.monotonic()))
        part = connection.recv(min(left, 1 << 20))
        if not part:
            raise ConnectionError("the other end has closed the connection")
        parts.append(part)
        left -= len(part)
    if until is not None:
        connection.settimeout(None)
    return b"".join(parts)
