"""A PostgreSQL client that does just what the measurements need, in few microseconds: TLS 1.3, SCRAM-SHA-256, a query
whose answer is counted instead of decoded, and COPY from a prepared block of bytes.

Why not psql or a driver: 2,000 of them do not fit on the machine that is measured, and libpq derives its SCRAM keys
anew for every connection, which takes longer than all that the server does for it.
"""

import base64
import functools
import hashlib
import hmac
import os
import socket
import ssl
import struct

SSL_REQUEST = struct.pack("!II", 8, 80877103)
PROTOCOL_3_0 = 196608
READY = b"Z\0\0\0\5I"
# A CopyData message of this much is what psql sends.
COPY_MESSAGE_BYTES = 8192
_READ_BYTES = 256 * 1024


class ServerError(Exception):
    """An ErrorResponse, as the words of its fields."""


def tls_context(ca_file):
    """A context that checks the server's certificate and takes TLS 1.3 alone. One serves all connections."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Client:
    """One session that has logged in."""

    def __init__(self, address, context, user, password, database):
        """Connects and logs in; `address` is a host name and a port, both of which the certificate has to fit."""
        plain = socket.create_connection(address, timeout=60)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.sendall(SSL_REQUEST)
            if plain.recv(1) != b"S":
                raise ServerError("the server does not speak TLS")
            self.socket = context.wrap_socket(plain, server_hostname=address[0])
        except BaseException:
            plain.close()
            raise
        self._unread = b""
        try:
            self._log_in(user, password, database)
        except BaseException:
            self.socket.close()
            raise

    def close(self):
        """Says Terminate and waits until the server has closed, so that what this session cost has been spent."""
        try:
            self.socket.sendall(_message(b"X", b""))
            while self.socket.recv(4096):
                pass
        except (ssl.SSLError, ConnectionError):
            pass  # Without a close_notify, as PgBouncer ends.
        finally:
            self.socket.close()

    def query(self, text):
        """Runs one statement, and gives the answer's messages but for ReadyForQuery: (type, body)."""
        self.socket.sendall(_message(b"Q", text.encode() + b"\0"))
        return self._messages_until_ready()

    def count_result(self, text, tag):
        """Runs one statement and reads its answer without looking into it. Gives its bytes.

        The command tag at its end tells that it is complete: `tag` is what it must be.
        """
        self.socket.sendall(_message(b"Q", text.encode() + b"\0"))
        end = _message(b"C", tag.encode() + b"\0") + READY
        tail, total, buffer = b"", 0, bytearray(_READ_BYTES)
        while not tail.endswith(READY):
            size = self.socket.recv_into(buffer)
            if size == 0:
                raise ServerError(f"the connection ended after {total} bytes of {text!r}")
            total += size
            tail = (tail + bytes(buffer[max(0, size - 1024) : size]))[-1024:]
        if not tail.endswith(end):
            raise ServerError(f"{text!r} did not end with {tag}: {tail[-200:]!r}")
        return total

    def copy_in(self, text, block, repeats):
        """Sends `repeats` times `block`, which holds whole lines, as the data of a COPY FROM STDIN. Gives the bytes."""
        self.socket.sendall(_message(b"Q", text.encode() + b"\0"))
        kind, body = self._message()
        if kind != b"G":
            raise ServerError(_words(kind, body))
        pieces = [block[at : at + COPY_MESSAGE_BYTES] for at in range(0, len(block), COPY_MESSAGE_BYTES)]
        framed = b"".join(_message(b"d", piece) for piece in pieces)
        for _ in range(repeats):
            self.socket.sendall(framed)
        self.socket.sendall(_message(b"c", b""))
        tags = [body for kind, body in self._messages_until_ready() if kind == b"C"]
        expected = f"COPY {block.count(10) * repeats}".encode() + b"\0"
        if tags != [expected]:
            raise ServerError(f"COPY ended with {tags}, not {expected!r}")
        return len(framed) * repeats

    def _log_in(self, user, password, database):
        parameters = b"".join(name.encode() + b"\0" for name in ("user", user, "database", database)) + b"\0"
        self.socket.sendall(struct.pack("!II", 8 + len(parameters), PROTOCOL_3_0) + parameters)
        exchange = None
        while True:
            kind, body = self._message()
            if kind == b"E":
                raise ServerError(_words(kind, body))
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            (code,) = struct.unpack("!I", body[:4])
            if code == 10:
                exchange = Scram(password)
                first = exchange.first()
                self._send_sasl(b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
            elif code == 11:
                self._send_sasl(exchange.answer(body[4:]))
            elif code == 12:
                exchange.check(body[4:])
            elif code != 0 or exchange is None:
                raise ServerError(f"authentication other than SCRAM-SHA-256 was asked for ({code})")

    def _send_sasl(self, body):
        self.socket.sendall(_message(b"p", body))

    def _messages_until_ready(self):
        messages = []
        while True:
            kind, body = self._message()
            if kind == b"Z":
                break
            messages.append((kind, body))
        for kind, body in messages:
            if kind == b"E":
                raise ServerError(_words(kind, body))
        return messages

    def _message(self):
        while True:
            if len(self._unread) >= 5:
                (length,) = struct.unpack_from("!I", self._unread, 1)
                if len(self._unread) > length:
                    kind, body = self._unread[:1], self._unread[5 : 1 + length]
                    self._unread = self._unread[1 + length :]
                    return kind, body
            more = self.socket.recv(65536)
            if not more:
                raise ServerError("the server closed the connection")
            self._unread += more


class Scram:
    """The client's side of SCRAM-SHA-256 without channel binding (RFC 5802, RFC 7677)."""

    def __init__(self, password):
        self._password = password
        self._nonce = base64.b64encode(os.urandom(18)).decode()
        self._first = f"n=,r={self._nonce}"
        self._server_signature = b""

    def first(self):
        """client-first-message."""
        return f"n,,{self._first}".encode()

    def answer(self, server_first):
        """client-final-message."""
        fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
        if not fields["r"].startswith(self._nonce):
            raise ServerError("the server changed the nonce")
        client_key, server_key = _scram_keys(self._password, base64.b64decode(fields["s"]), int(fields["i"]))
        without_proof = f"c=biws,r={fields['r']}"
        signed = f"{self._first},{server_first.decode()},{without_proof}".encode()
        stored_key = hashlib.sha256(client_key).digest()
        signature = hmac.digest(stored_key, signed, "sha256")
        self._server_signature = hmac.digest(server_key, signed, "sha256")
        proof = bytes(key ^ sign for key, sign in zip(client_key, signature))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, server_final):
        """Whether the server knows the keys as well."""
        if not hmac.compare_digest(server_final, b"v=" + base64.b64encode(self._server_signature)):
            raise ServerError("the server's signature is wrong")


@functools.lru_cache
def _scram_keys(password, salt, iterations):
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    return hmac.digest(salted, b"Client Key", "sha256"), hmac.digest(salted, b"Server Key", "sha256")


def _message(kind, body):
    return kind + struct.pack("!I", 4 + len(body)) + body


def _words(kind, body):
    if kind != b"E":
        return f"unexpected message {kind!r}"
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    return " ".join(fields.get(name, "") for name in (b"V", b"C", b"M", b"D")).strip()
