"""Runs a command without the sockets that systemd's RestrictAddressFamilies leaves out.

    python -m tests.helpers.sandbox AF_INET,AF_UNIX COMMAND ...

As systemd does it: a filter of system calls answers that there is no such address family.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

SOCKET = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
"""Number of the system call; None on other machines."""
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, FIRST_ARGUMENT = 0, 16
"""Where they are in what a filter sees of a call."""


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def restrict(families: list[int]) -> None:
    """Allow this process and its children no other sockets."""
    assert SOCKET is not None
    count = len(families)
    program = [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, count + 2, SOCKET),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        *((JUMP_IF_EQUAL, count - i, 0, family) for i, family in enumerate(families)),
        (RETURN, 0, 0, ERRNO | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *entry) for entry in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    made = _Filter(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    library = ctypes.CDLL(None, use_errno=True)
    assert library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert library.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(made), 0, 0) == 0


if __name__ == "__main__":
    names, *command = sys.argv[1:]
    restrict([int(getattr(socket, name)) for name in names.split(",")])
    os.execvp(command[0], command)
