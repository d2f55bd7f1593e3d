"""What fits: a file's size and the sizes in its header are compared with each other before anything is expanded."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

from .errors import BadInput

SMALL = 1 << 26  # bytes that any file may expand to
RATIO = 100  # beyond that: expanded bytes per byte of the file. Data for training compresses by less than 20
LEAST_SPACE = 1_200_000_000  # bytes of addresses; torch, numpy and scikit-learn take .95 GB
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def file_size(path: Path, largest: int | None = None) -> int:
    """The size of a regular file, in bytes.

    Raises:
        BadInput: there is none, it is a folder, a pipe or a device (reading one may never end), or above `largest`.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{path}: not a regular file")
    if largest is not None and status.st_size > largest:
        raise BadInput(f"{path}: {status.st_size} bytes, allowed are at most {largest}")
    return status.st_size


def read_text(path: Path, largest: int) -> str:
    """A whole small text file in UTF-8.

    Raises:
        BadInput: as `file_size`, or it is no text.
    """
    file_size(path, largest)
    try:
        with open(path, "rb") as file:
            return file.read(largest).decode()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from None


def check_header(path: Path, largest: int) -> None:
    """Refuses a .safetensors file with a header that would take far more memory to parse than any real one.

    Raises:
        BadInput: no regular file, one too short for a header, or a header above `largest` bytes.
    """
    size = file_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > min(size, largest):
        raise BadInput(
            f"{path}: not a whole .safetensors file: its header has {length} of the file's {size} bytes, "
            f"allowed are {largest}; it is truncated, damaged or of another kind"
        )


def check_expansion(source: object, expanded: int, packed: int) -> None:
    """Refuses what expands to far more than any data do.

    Raises:
        BadInput: `packed` bytes of the file `source` would become `expanded` bytes.
    """
    if expanded > max(SMALL, RATIO * packed):
        raise BadInput(
            f"{source}: {packed} bytes that expand to {expanded}, allowed is {RATIO} times as many; "
            "data that do compress so well can be stored uncompressed"
        )


def check_memory(source: object, needed: int) -> None:
    """Refuses what this machine cannot hold.

    Raises:
        BadInput: `source` needs more bytes than the memory limit.
    """
    limit = memory_limit()
    if needed > limit:
        raise BadInput(f"{source}: needs {_gigabytes(needed)} of memory, this process may use {_gigabytes(limit)}")


def memory_limit() -> int:
    """The bytes that this process may use at all: the machine's, its control group's or `ulimit -v`, the smallest."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    for name in CGROUP_LIMITS:
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no such group, or `max`
            continue
    return min(limits)


def check_address_space() -> None:
    """Refuses a limit under which libraries would end the process from within while they are loaded.

    Raises:
        BadInput: `ulimit -v` leaves less than a small run takes.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_SPACE:
        raise BadInput(f"ulimit -v: this process may use {_gigabytes(soft)} of addresses, "
                       f"{_gigabytes(LEAST_SPACE)} are needed")  # fmt: skip


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gigabytes(size: int) -> str:
    return f"{size} bytes" if size < 10**8 else f"{min(size, 10**30) / 1e9:.3g} GB"
