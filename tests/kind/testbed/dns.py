"""Asks one name server for one name. Runs as a script in a node's network namespace; exits 0 on an answer."""

import random
import socket
import struct
import sys

TIMEOUT_SECONDS = 2
TYPE_A, CLASS_IN = 1, 1
RECURSION_DESIRED = 0x0100
RESPONSE_CODE = 0x000F


def query(name: str, identifier: int) -> bytes:
    header = struct.pack("!6H", identifier, RECURSION_DESIRED, 1, 0, 0, 0)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return header + labels + b"\0" + struct.pack("!2H", TYPE_A, CLASS_IN)


def resolves(server: str, name: str) -> bool:
    """Whether the server answers with at least one address."""
    identifier = random.randrange(1 << 16)  # noqa: S311 - matches answer and question, guards nothing
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(TIMEOUT_SECONDS)
        channel.connect((server, 53))
        try:
            channel.send(query(name, identifier))
            answer = channel.recv(512)
        except OSError:
            return False
    echoed, flags, _, answers = struct.unpack("!4H", answer[:8])
    return echoed == identifier and not flags & RESPONSE_CODE and answers > 0


if __name__ == "__main__":
    sys.exit(0 if resolves(sys.argv[1], sys.argv[2]) else 1)
