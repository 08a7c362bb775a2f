"""What bytes go through."""

from __future__ import annotations

import os
import select
import socket

from support.everything.kit import DATA, Check, readable


def pipe_with_bytes() -> Check:
    reader, writer = os.pipe()
    os.write(writer, b"on its way")

    def check() -> None:
        readable(reader)
        assert os.read(reader, 100) == b"on its way"
        os.write(writer, b"on its way")

    return check


def fifo() -> Check:
    path = DATA / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    os.write(both, b"waits")

    def check() -> None:
        readable(both)
        assert os.read(both, 100) == b"waits"
        os.write(both, b"waits")

    return check


def socket_pair() -> Check:
    one, two = socket.socketpair()
    one.sendall(b"unread")

    def check() -> None:
        readable(two)
        assert two.recv(100) == b"unread"
        one.sendall(b"unread")

    return check


def unix_listeners() -> Check:
    names = ("/data/socket", "\0abstract")
    listeners = {name: socket.socket(socket.AF_UNIX) for name in names}
    for name, it in listeners.items():
        it.bind(name)
        it.listen()

    def check() -> None:
        for name, listener in listeners.items():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
                readable(listener)
                accepted, _ = listener.accept()
                accepted.sendall(b"hello")
                assert client.recv(10) == b"hello"
                accepted.close()

    return check


def connection_to_itself() -> Check:
    listener = socket.create_server(("127.0.0.1", 7777))
    client = socket.create_connection(("127.0.0.1", 7777))
    served, _ = listener.accept()
    served.sendall(b"not read yet")

    def check() -> None:
        readable(client)
        assert client.recv(100) == b"not read yet"
        client.sendall(b"back")
        readable(served)
        assert served.recv(100) == b"back"
        served.sendall(b"not read yet")
        socket.create_connection(("127.0.0.1", 7777)).close()
        listener.accept()[0].close()

    return check


def udp_socket() -> Check:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 7778))

    def check() -> None:
        bound.sendto(b"to myself", ("127.0.0.1", 7778))
        readable(bound)
        assert bound.recv(100) == b"to myself"

    return check


def event_descriptor() -> Check:
    counter = os.eventfd(7)

    def check() -> None:
        readable(counter)
        assert os.eventfd_read(counter) == 7
        os.eventfd_write(counter, 7)

    return check


def epoll() -> Check:
    reader, writer = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN)
    os.write(writer, b"x")

    def check() -> None:
        assert poll.poll(1) == [(reader, select.EPOLLIN)]

    return check


def terminal() -> Check:
    master, slave = os.openpty()

    def check() -> None:
        assert os.isatty(slave)
        os.write(slave, b"line\n")
        readable(master)
        assert os.read(master, 100).strip() == b"line"

    return check
