"""The child side of the sandbox: a script that locks itself in and then runs the program on its standard input.

Arguments: a pipe to report on, CPU seconds, memory bytes, file bytes, processes. It stands alone, without mtad.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from typing import Any

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x20000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_PRIVATE, _RECURSIVE = 0x40000, 0x4000
_MOUNT_SETATTR, _HERE, _WHOLE_TREE, _READ_ONLY = 442, -100, 0x8000, 1
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES = 1, 38
_STRANGER = 64_000
_KEEP_CAPABILITIES, _CAPABILITY_VERSION, _MAY_READ = 8, 0x20080522, 1 << 2
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.kill",
    "os.fork",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "ctypes.",
    "pty.",
)


def main() -> None:
    """Lock in, run, report."""
    report, cpu_s, memory, file_bytes, num_processes = (int(word) for word in sys.argv[1:])
    nonce, _, source = sys.stdin.buffer.read().decode("utf-8").partition("\n")
    is_root = os.getuid() == 0
    is_isolated = _isolate(file_bytes, is_root)
    os.write(report, b"namespaces\n" if is_isolated else b"audit_hook\n")
    if is_isolated:
        _become_grandchild()
    if is_root:
        _become_stranger()
    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    limits = ("CPU", cpu_s), ("AS", memory), ("FSIZE", file_bytes), ("NPROC", num_processes), ("CORE", 0)
    for name, limit in limits:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if not is_isolated:
        sys.addaudithook(_refuse)
    _run(source, nonce, report)


def _isolate(file_bytes: int, is_root: bool) -> bool:
    """Leave the network, the other processes and the writable file systems behind; False where that is not allowed."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK | (0 if is_root else _NEW_USER)):
        return False
    if not is_root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123
                file.write(text)
    folder = os.getcwd().encode()  # noqa: PTH109
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", _READ_ONLY, 0, 0, 0))
    settings = f"size={file_bytes},nr_inodes=1000,mode=777".encode()
    is_walled = (
        libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0
        and libc.syscall(_MOUNT_SETATTR, _HERE, b"/", _WHOLE_TREE, attributes, 32) == 0
        and libc.mount(b"tmpfs", folder, b"tmpfs", 0, settings) == 0
    )
    os.chdir(folder)
    return bool(is_walled)


def _become_grandchild() -> None:
    """Go on as a child of the first process of the new world; with that one's end the kernel ends all in it."""
    first = os.fork()
    if first:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    second = os.fork()
    if second:
        # Everything without a parent is adopted here, so other children may end before the program does.
        ended = 0
        while ended != second:
            ended, status = os.wait()
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _become_stranger() -> None:
    """Give up root, whom no limit on processes binds; only reading stays allowed, for Python's own files."""
    libc = ctypes.CDLL(None)
    os.chown(".", _STRANGER, _STRANGER)
    os.setgroups([])
    os.setgid(_STRANGER)
    libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setuid(_STRANGER)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    libc.capset(header, struct.pack("6I", _MAY_READ, _MAY_READ, 0, 0, 0, 0))


def _refuse(event: str, arguments: Any) -> None:
    if event.startswith(_FORBIDDEN) or (event == "open" and _writes_elsewhere(*arguments)):
        raise PermissionError(f"{event} is not allowed here")


def _writes_elsewhere(path: Any, mode: str | None, flags: int) -> bool:
    """Whether a file outside the current folder is opened to be changed."""
    if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) or isinstance(path, int):
        return False
    inside = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    return not os.path.abspath(os.fsdecode(path)).startswith(inside)  # noqa: PTH100


def _run(source: str, nonce: str, report: int) -> None:
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # noqa: BLE001
        # Whatever generated code raises is its result, exits and interrupts included.
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        os.write(report, f"failed {text[:300]}\n".encode("utf-8", "replace"))
        os._exit(1)
    os.write(report, f"passed {nonce}\n".encode())
    os._exit(0)


main()
