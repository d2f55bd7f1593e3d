"""The processes that train one model, and what they tell each other: bytes, to all others or to the first one.

Messages go from process to process, so that one which does not come names its sender. The first process to miss one
says so in the store that torchrun keeps; the others, whose connections break in turn, read the name there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput, LostProcess, bad, reason

LEAST_ROOM = 1 << 10  # bytes of a message's first part
RECENT = 4  # messages whose longest gives the room: the exchanges of a step differ in length
LINGER = 2.0  # seconds that the first process stays for the others to read who was lost, where it keeps the store
HEAD = 8  # bytes of a message's length
RANKS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes


class Group:
    """The processes of one run. All call the same functions in the same order.

    Attributes:
        rank, size: which process this is, of how many.
        timeout: seconds after which a process that has not answered counts as lost.
    """

    def __init__(self, timeout: float, environment: dict[str, str] | None = None) -> None:
        """Joins the processes that torchrun started.

        Raises:
            BadInput: torchrun did not start this process.
            LostProcess: another one did not come in time.
        """
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        given = dict(os.environ if environment is None else environment)
        if missing := [name for name in RANKS if name not in given]:
            raise BadInput(f"--parallel: torchrun starts its processes, this one has no {missing[0]}; "
                           "use: torchrun --nproc-per-node N -m ssd_train run ...")  # fmt: skip
        self.rank, self.size, self.timeout = int(given["RANK"]), int(given["WORLD_SIZE"]), timeout
        self._dist: Any = dist
        self._recent = [deque([0], maxlen=RECENT) for _ in range(self.size)]
        limit = timedelta(seconds=timeout)
        try:
            self._store, _, _ = next(rendezvous("env://", timeout=limit))
            dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=limit)
        except (RuntimeError, ValueError, dist.DistError) as error:
            raise LostProcess(f"not all of {self.size} processes came within {timeout:g} s ({reason(error)})") from None

    def close(self) -> None:
        """Leaves the group."""
        with suppress(Exception):
            self._dist.destroy_process_group()

    def gather(self, data: bytes, to: int | None = None) -> list[bytes]:
        """Every process's bytes, by rank; with `to` only that process gets them, the others b"" and their own.

        Raises:
            LostProcess: names the process that did not answer.
        """
        others = [r for r in range(self.size) if r != self.rank]
        rooms = [LEAST_ROOM] * self.size
        if to is None:
            rooms = [max(LEAST_ROOM, 1 << max(recent).bit_length()) for recent in self._recent]
        room = rooms[self.rank]
        first = torch.zeros(HEAD + room, dtype=torch.uint8)
        first[:HEAD] = torch.frombuffer(bytearray(len(data).to_bytes(HEAD, "little")), dtype=torch.uint8)
        message = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else first[:0]
        first[HEAD : HEAD + len(data)] = message[:room]
        receivers = others if to is None else [r for r in others if r == to]
        senders = others if to in (None, self.rank) else []
        buffers = {r: torch.empty(HEAD + rooms[r], dtype=torch.uint8) for r in senders}
        self._transfer(dict.fromkeys(receivers, first), buffers)
        lengths = {r: int.from_bytes(bytes(buffers[r][:HEAD].tolist()), "little") for r in senders}
        rest = {r: torch.empty(n - rooms[r], dtype=torch.uint8) for r, n in lengths.items() if n > rooms[r]}
        self._transfer(dict.fromkeys(receivers, message[room:]) if len(data) > room else {}, rest)
        parts = [b""] * self.size
        parts[self.rank] = data
        for r, n in lengths.items():
            parts[r] = buffers[r][HEAD : HEAD + min(n, rooms[r])].numpy().tobytes()
            if r in rest:
                parts[r] += rest[r].numpy().tobytes()
        if to is None:
            for recent, part in zip(self._recent, parts):
                recent.append(len(part))
        return parts

    def _transfer(self, out: dict[int, Tensor], into: dict[int, Tensor]) -> None:
        """Sends and receives one tensor of bytes per process."""
        calls = [(self._dist.irecv, peer, tensor) for peer, tensor in into.items()]
        calls += [(self._dist.isend, peer, tensor) for peer, tensor in out.items()]
        pending: list[tuple[int, Any]] = []
        peer, work = self.rank, None
        try:
            for call, peer, tensor in calls:
                pending.append((peer, call(tensor, peer)))
            for peer, work in pending:  # noqa: B007 (peer is named where it fails)
                work.wait()
            return
        except RuntimeError as error:
            lost = self._lost(peer, error)
        pending.clear()  # what still waits would keep the connections open
        work = None
        self.close()  # now the others see that something is wrong, also those that wait for this process
        if self.rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
            time.sleep(LINGER)  # the store is in this process, and they look into it
        raise lost

    def _lost(self, peer: int, error: RuntimeError) -> LostProcess:
        """Names the process that was lost first, as the first to miss it wrote in the store."""
        text = reason(error).lower()
        how = f"did not answer for {self.timeout:g} s" if "timed out" in text or "timeout" in text else "ended"
        named = f"rank {peer} {how}"
        with suppress(Exception):  # the store ends with the process that keeps it
            self._store.set_timeout(timedelta(seconds=5))
            named = self._store.compare_set("ssd_train/lost", "", named).decode() or named
        return LostProcess(f"{named}, so rank {self.rank} ends too; start the processes again with --resume")

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        return any(part == b"1" for part in self.gather(b"1" if flag else b"0"))

    def first(self, value: Any) -> Any:
        """What the first process has, as JSON knows it."""
        return json.loads(self.gather(json.dumps(value).encode() if self.rank == 0 else b"")[0])

    @contextmanager
    def together(self, facts: Callable[[], dict[str, Any]] = dict) -> Iterator[None]:
        """A part of the run that all processes get through, or none: an error in one is an error in all.

        Args:
            facts: called at its end, what must then be alike everywhere; its names are what an error shows.

        Raises:
            BadInput: what another process could not use, or in what it differs, with its rank. All raise it; the
                first one's is enough to show.
        """
        error: BaseException | None = None
        found: dict[str, Any] = {}
        try:
            yield
            found = facts()
        except LostProcess:
            raise
        except (Exception, SystemExit) as raised:
            error = raised
        report = {"error": None if error is None else " ".join(str(error).split()), "facts": found}
        reports = [json.loads(part) for part in self.gather(json.dumps(report).encode())]
        if error is not None:
            raise error
        for rank, other in enumerate(reports):
            if other["error"] is not None:
                raise BadInput(f"rank {rank}: {other['error']}")
        for name, value in reports[0]["facts"].items():
            for rank, other in enumerate(reports):
                theirs = other["facts"].get(name)
                if theirs != value:
                    text = f"--parallel: rank {rank} has {name} {theirs!r}, rank 0 has {value!r}; they must be the same"
                    raise BadInput(text)


def together(group: Group | None,
             facts: Callable[[], dict[str, Any]] = dict) -> contextlib.AbstractContextManager[None]:  # fmt: skip
    """`Group.together`, or nothing where there is one process."""
    return contextlib.nullcontext() if group is None else group.together(facts)


def start(parallel: str | None, timeout: float) -> Group | None:
    """The group of `--parallel`, or None without it.

    Raises:
        BadInput: torchrun started several processes, but --parallel does not say what they share.
    """
    if parallel is not None:
        return Group(timeout)
    size = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and size != "1":
        raise bad("--parallel", parallel, f"data or neurons, for torchrun started {size} processes")
    return None
