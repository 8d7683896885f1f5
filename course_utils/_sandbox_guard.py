"""What a sandboxed process locks itself into before it runs anything; stdlib only.

On Linux the kernel enforces it, for root as well, and no Python code can undo it: Landlock
(https://docs.kernel.org/userspace-api/landlock.html) for files, a seccomp filter (man 2 seccomp)
for network, processes, signals and file modes, which Landlock does not cover, and no capabilities.
Where either is missing, Python's audit hook (PEP 578) refuses the same things. It stops careless
code; an attacker gets around it.
"""

import contextlib
import errno
import os
import signal
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
FILE_BYTES, OPEN_FILES = 2**20, 64
_LIBC = None
if sys.platform == "linux":
    with contextlib.suppress(ImportError, OSError):  # a Python built without ctypes
        import ctypes

        _LIBC = ctypes.CDLL(None)


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Set CPU time, memory, file size (each file) and open files; Windows has no `resource`."""
    try:
        import resource
    except ImportError:
        return
    for name, value in [
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_AS", memory_bytes),  # macOS accepts but does not enforce it
        ("RLIMIT_FSIZE", FILE_BYTES),
        ("RLIMIT_NOFILE", OPEN_FILES),
        ("RLIMIT_CORE", 0),
    ]:
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))


def confine(folder: str, kernel: bool = True) -> list[str]:
    """Lock this process up: only files in `folder`, no network, no other process.

    Args:
        folder: the one place where files may be written; files only, no folders and no links.
        kernel: False leaves out what only Linux has (for tests of what other systems get).

    Returns:
        What the operating system does not enforce here; empty where it enforces everything.
    """
    missing, kernel = [], kernel and _LIBC is not None
    if kernel:  # without it only root may restrict itself
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not (kernel and _landlock(folder)):
        missing.append("which files are read and written")
    if not (kernel and _seccomp()):
        missing.append("network, processes and signals")
        _no_new_processes()
    if sys.platform != "linux":
        missing.append("memory" if os.name == "posix" else "memory, CPU time and file size")
    if missing:
        sys.addaudithook(_hook(folder))
    return missing


def _no_new_processes() -> None:
    """Second line of defence against fork bombs on macOS; root is exempt.

    The limit counts all processes of the user, so that 1 refuses every further one; on Linux it
    counts threads too, which right code may start.
    """
    if sys.platform == "darwin":
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


# -------------------------------------------------------------------- Landlock: which files

# Bits of LANDLOCK_ACCESS_FS_* in <linux/landlock.h>.
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_FILE, _TRUNCATE = (
    1 << bit for bit in (1, 2, 3, 5, 8, 14)
)
_READ = _READ_FILE | _READ_DIR
# No folders or links: nobody can then build a tree too deep to clean up, or a link out of it.
_OWN = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
_RIGHTS_OF_ABI = (13, 14, 15, 15, 16)  # how many rights versions 1 to 5 know; later ones no more
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor


def _landlock(folder: str) -> bool:
    """Allow `folder` and reading of Python and system libraries; False where there is none."""
    abi = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    handled = (1 << _RIGHTS_OF_ABI[min(abi, 5) - 1]) - 1
    network = 0b11 if abi >= 4 else 0  # TCP: bind, connect
    outside = 0b11 if abi >= 6 else 0  # abstract sockets and signals
    attributes = struct.pack("=QQQ", handled, network, outside)
    attributes = attributes[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = _LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    _allow(rules, folder, _OWN & handled)
    for place in _readable():
        _allow(rules, place, _READ)
    _allow(rules, os.devnull, _READ_FILE | _WRITE_FILE)
    done = _LIBC.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return done


def _readable() -> list[str]:
    """Where imports, shared libraries, time zones and random bytes come from; often in a home."""
    own = [os.path.dirname(os.__file__)]
    own += [os.path.join(sys.base_prefix, name) for name in ("lib", "lib64", "DLLs")]
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    return own + system + ["/usr/share/zoneinfo", "/nix/store", "/dev/urandom", "/dev/zero"]


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    if not os.path.isdir(path):
        rights &= _READ_FILE | _WRITE_FILE
    _LIBC.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0)
    os.close(place)


# ------------------------------------------------------------- seccomp: which system calls

# Name and numbers on x86_64 and aarch64, from <asm/unistd.h>; "-" where there is no such call.
_REFUSED = {
    "start another process or program, enter another namespace": (
        "fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, unshare 272 97, setns 308 268, "
        "mount 165 40, chroot 161 51"
    ),
    "network, and io_uring, whose operations pass by this filter": (
        "socket 41 198, io_uring_setup 425 425"
    ),
    "memory, signals and priority of other processes": (
        "ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, "
        "process_madvise 440 440, move_pages 279 239, migrate_pages 256 238, tkill 200 130, "
        "pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424, setpriority 141 140, "
        "sched_setparam 142 118, sched_setscheduler 144 119, sched_setaffinity 203 122, "
        "sched_setattr 314 274, ioprio_set 251 30"
    ),
    "memory that no limit counts or that outlives the process, machinery of the kernel": (
        "shmget 29 194, semget 64 190, msgget 68 186, mq_open 240 180, memfd_create 319 279, "
        "keyctl 250 219, add_key 248 217, request_key 249 218, bpf 321 280, "
        "perf_event_open 298 241, userfaultfd 323 282"
    ),
    "changes to files that Landlock does not cover (truncate: before its version 3)": (
        "chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, "
        "lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, "
        "utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463, "
        "removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, removexattrat 466 466, "
        "file_setattr 469 469, truncate 76 45"
    ),
}
# Their arguments lie in memory, where the filter cannot look: "no such call" makes the C library
# use the older clone and openat.
_ABSENT = "clone3 435 435, openat2 437 437"
# Refused when (argument & mask) == value, or != value.
_ALL, _CLONE_THREAD, _SOCK_STREAM = 0xFFFFFFFF, 0x10000, 1
_F_SETOWN, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 15, 0x8901, 0x8902  # who gets SIGIO
_REFUSED_IF = [
    ("clone 56 220", 0, _CLONE_THREAD, "==", 0),  # threads may be started
    ("socketpair 53 199", 1, 0xF, "!=", _SOCK_STREAM),  # asyncio needs it; reaches nobody else
    ("open 2 -", 1, 0o1003, "==", 0o1000),  # to truncate (O_TRUNC) without to write
    ("openat 257 56", 2, 0o1003, "==", 0o1000),
    ("fcntl 72 25", 1, _ALL, "==", _F_SETOWN),
    ("fcntl 72 25", 1, _ALL, "==", _F_SETOWN_EX),
    ("ioctl 16 29", 1, _ALL, "==", _FIOSETOWN),
    ("ioctl 16 29", 1, _ALL, "==", _SIOCSPGRP),
    ("prlimit64 302 261", 0, _ALL, "!=", 0),  # of this process only
    ("kill 62 129", 0, _ALL, "!=", os.getpid()),
    ("tgkill 234 131", 0, _ALL, "!=", os.getpid()),
    ("rt_sigqueueinfo 129 138", 0, _ALL, "!=", os.getpid()),
    ("rt_tgsigqueueinfo 297 240", 0, _ALL, "!=", os.getpid()),
]
_PROCESSORS = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column, AUDIT_ARCH_*
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF instructions
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_*


def _seccomp() -> bool:
    """Refuse the calls above for the rest of this process's life; False where that fails."""
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # other processes of this user may not look inside
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # die with who started us
    # Root without capabilities cannot raise limits or mount; for other users this changes nothing.
    _LIBC.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    if os.uname().machine not in _PROCESSORS or sys.maxsize < 2**32:
        return False
    program = b"".join(struct.pack("=HBBI", *line) for line in _filter())
    buffer = ctypes.create_string_buffer(program)
    pointer = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    return _LIBC.prctl(_PR_SET_SECCOMP, 2, pointer, 0, 0) == 0


def _filter() -> list[tuple[int, int, int, int]]:
    """The filter as BPF lines (instruction, steps if true, steps if false, number)."""
    column, architecture = _PROCESSORS[os.uname().machine]
    refuse, load_call = (_RETURN, 0, 0, _ERROR | errno.EPERM), (_LOAD, 0, 0, 0)
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), load_call]
    lines += [(_AT_LEAST, 0, 1, 0x40000000), refuse]  # x86's second set of numbers (x32)
    for call in ", ".join(_REFUSED.values()).split(", "):
        lines += _if_call(call, column, [refuse])
    for call in _ABSENT.split(", "):
        lines += _if_call(call, column, [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)])
    for call, argument, mask, comparison, value in _REFUSED_IF:
        skip = (0, 1) if comparison == "==" else (1, 0)
        test = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask), (_EQUAL, *skip, value)]
        lines += _if_call(call, column, [*test, refuse, load_call])
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _if_call(call: str, column: int, lines: list[tuple[int, int, int, int]]) -> list:
    """These lines, stepped over for every other system call."""
    number = call.split()[column]
    return [] if number == "-" else [(_EQUAL, 0, len(lines), int(number)), *lines]


# ------------------------------------------------- audit hook: where the kernel does not help

# Events (https://docs.python.org/3/library/audit_events.html), or all events of a module.
_NEVER = {
    "processes": (
        "ctypes, subprocess, pty, os.fork, os.forkpty, os.exec, os.posix_spawn, os.spawn, "
        "os.system, os.startfile, os.kill, os.killpg, signal.pthread_kill, resource"
    ),
    "network": (
        "socket.connect, socket.bind, socket.sendto, socket.sendmsg, socket.getaddrinfo, "
        "socket.gethostbyname, socket.gethostbyaddr"
    ),
    "files": (
        "os.mkdir, os.rmdir, os.link, os.symlink, os.chmod, os.chown, os.chflags, os.utime, "
        "os.setxattr, os.removexattr, sqlite3, winreg.CreateKey, winreg.DeleteKey, "
        "winreg.DeleteValue, winreg.SetValue"
    ),
}
_WRITING = ("os.remove", "os.rename", "os.truncate")
_READING = ("os.listdir", "os.scandir")


def _hook(folder: str):
    """An audit hook that refuses by name of the event, and by path where the event has one."""
    never, own = {*", ".join(_NEVER.values()).split(", ")}, os.path.realpath(folder)
    readable = [own, *map(os.path.realpath, _readable())]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def within(path, places) -> bool:
        if isinstance(path, int):
            return True  # an open file
        real = os.path.realpath("." if path is None else os.fsdecode(path))
        return any(real == p or real.startswith(os.path.join(p, "")) for p in places)

    def hook(event, args):
        if event in never or event.partition(".")[0] in never:
            raise PermissionError(f"the sandbox does not allow {event}")
        if event == "open" and args[0] != os.devnull:
            allowed = within(args[0], [own] if args[2] & writing else readable)
        elif event in _WRITING:
            allowed = all(within(p, [own]) for p in args if isinstance(p, str | bytes))
        else:
            allowed = event not in _READING or within(args[0], readable)
        if not allowed:
            raise PermissionError(f"the sandbox does not allow {event}({args[0]!r})")

    return hook
