"""Programs that hold what cannot be dumped, and print `ready` when they do."""

from __future__ import annotations

_BASIC = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def need(descriptor):
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return descriptor
{hold}
print("ready", flush=True)
time.sleep(1e6)
"""

HOLDS = {
    "io_uring": _BASIC.format(hold="kept = need(libc.syscall(425, 8, ctypes.create_string_buffer(120)))"),
    "userfaultfd": _BASIC.format(hold="kept = need(libc.syscall(323, os.O_CLOEXEC | 1))"),
    "deleted file": _BASIC.format(
        hold="""
kept = os.open("/data/big", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(kept, 0, 257 << 20)
os.unlink("/data/big")
"""
    ),
    "socket": _BASIC.format(
        hold="""
if sys.argv[1:] == ["first"]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/data/socket")
    listener.listen()
    kept = listener.accept()
else:
    kept = socket.socket(socket.AF_UNIX)
    while kept.connect_ex("/data/socket"):
        time.sleep(0.1)
"""
    ),
}
"""By what they hold; of the socket `first` is one end, any other argument the other."""
