"""One case: a spoilt file, a reader, and what came of it."""

import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from graphhalu.core.errors import GraphhaluError
from graphhalu.core.files import MALFORMED
from tests.malformed.mutations import spoil
from tests.malformed.table import Reader, Target

MOST_CPU_S = 5.0
"""Processor time that a case may take; time on the clock says more of what else runs."""
MOST_BYTES = 320 * 2**20
"""How much the memory of the process may grow in a case."""
ADDRESS_BYTES = 3 * 2**30
"""Address space that may be asked for beyond what is mapped: a larger request fails at once."""
MOST_TEXT = 4000
"""Longest text of an error."""


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        kind: ``valid``, ``refused``, or what is wrong.
        detail: The error.
        cpu_s: Processor time.
        n_bytes: By how much the largest memory of the process grew.
    """

    kind: str
    detail: str
    cpu_s: float
    n_bytes: int

    @property
    def is_fault(self) -> bool:
        """Whether a reader must be mended."""
        return self.kind not in ("valid", "refused")


class TooLong(BaseException):
    """A case used up its time; no reader may catch it."""


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Bench:
    """The folder of a reader, which is valid between cases.

    Args:
        reader: The reader.
        folder: Empty; the reader's files go into a folder in it, and nothing may appear beside.
    """

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader = reader
        self.outside = folder
        self.folder = folder / "chosen" / "inner"
        self.folder.mkdir(parents=True)
        (folder / "neighbour").write_bytes(b"x")
        reader.make(self.folder)
        self.valid = {path: path.read_bytes() for path in self._files()}
        self.around = self._around()
        self.written: set[Path] = set(self.valid)
        self.expected = {target: reader.read(self.folder / target.file) for target in reader.targets}
        self._restore()

    def case(self, rng: random.Random) -> tuple[Target, Outcome]:
        """Spoil one file, read, and make everything valid again."""
        target = rng.choice(self.reader.targets)
        path = self.folder / target.file
        try:
            is_sealed = self._spoil(path, target, rng)
            return target, self._read(path, target, is_sealed=is_sealed)
        finally:
            self._restore()

    def spoilt(self, rng: random.Random) -> tuple[Target, bytes | None]:
        """What a case reads; ``None`` where the file is none."""
        target = rng.choice(self.reader.targets)
        path = self.folder / target.file
        try:
            self._spoil(path, target, rng)
            return target, path.read_bytes() if path.is_file() else None
        finally:
            self._restore()

    def _spoil(self, path: Path, target: Target, rng: random.Random) -> bool:
        self.written.add(path)
        way = rng.randrange(60)
        if way < 4:
            _replace_entry(path, way)
            return False
        path.write_bytes(spoil(self.valid[path], target.kind, rng))
        is_sealed = target.seal is not None and rng.random() < 0.7
        if is_sealed:
            self.written |= set(self.valid)
            try:
                assert target.seal is not None
                target.seal(path)
            except (*MALFORMED, AssertionError):
                return True  # what cannot be sealed is read as it is
        return is_sealed

    def _read(self, path: Path, target: Target, *, is_sealed: bool) -> Outcome:
        start, before = time.process_time(), peak_bytes()
        kind, detail = "valid", ""
        try:
            with _limited():
                found = self.reader.read(path)
            if target.is_checked and not is_sealed and not _same(found, self.expected[target]):
                kind = "silent change"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001
            kind, detail = _judged(error)
            if type(error).__name__ == "TypeCheckError" and "graphhalu.core.errors." in _told(error):
                # type checks of the tests read a store's first trace, and hide what it says
                kind = "refused"
        cpu_s, grown = time.process_time() - start, peak_bytes() - before
        if grown > MOST_BYTES and kind in ("valid", "refused"):
            kind = f"memory of {grown >> 20} MiB"
        if (written := self._written()) and kind in ("valid", "refused"):
            kind, detail = "wrote elsewhere", ", ".join(written)
        return Outcome(kind, detail, cpu_s, grown)

    def _written(self) -> list[str]:
        found = sorted(set(self._around()) - set(self.around))
        if not self.reader.writes:
            found += [str(p) for p in self._files() if p not in self.valid]
        return found

    def _around(self) -> list[str]:
        """Everything beside the chosen folder, and what a path that leads out could make."""
        beside = [entry.path for entry in os.scandir(self.outside)]
        beside += [entry.path for entry in os.scandir(self.folder.parent)]
        return beside + [place for place in ("/escape", "/tmp/escape") if os.path.lexists(place)]

    def _files(self) -> list[Path]:
        return [Path(above) / name for above, _, names in os.walk(self.folder) for name in names]

    def _restore(self) -> None:
        for path, content in self.valid.items():
            if path in self.written or not path.is_file():
                if path.is_symlink() or path.is_file():
                    path.unlink()
                elif path.is_dir():
                    shutil.rmtree(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.written.clear()
        for path in self._files():
            if path not in self.valid:
                path.unlink()


def _judged(error: BaseException) -> tuple[str, str]:
    """Kind and detail of an exception."""
    # the type checks of the tests look into a store, and meet its fault before its reader
    is_of_checks = type(error).__name__ == "TypeCheckError"
    said = error.__cause__ if is_of_checks and error.__cause__ is not None else error
    if isinstance(said, TooLong):
        return "too long", traceback.format_exc()[-1500:]
    if not isinstance(said, GraphhaluError):
        return f"raised {type(said).__name__}", traceback.format_exc()[-2500:]
    n_letters = len(str(said).strip())
    is_clear = 0 < n_letters <= MOST_TEXT
    return (
        "refused" if is_clear else f"text of {n_letters} characters",
        f"{type(said).__name__}: {str(said)[:MOST_TEXT]}",
    )


def _replace_entry(path: Path, way: int) -> None:
    """No file, a folder, a link to itself, or a link to nothing."""
    path.unlink()
    if way == 1:
        path.mkdir()
    elif way == 2:
        path.symlink_to(path.name)
    elif way == 3:
        path.symlink_to("absent")


def _same(found: Any, expected: Any) -> bool:
    return repr(found) == repr(expected)


def peak_bytes() -> int:
    """Largest memory of this process, or the largest since :func:`forget_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Count the largest memory from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _stop(*_: object) -> None:
    raise TooLong


@contextmanager
def _limited() -> Iterator[None]:
    """Bounds on processor time and address space while a file is read."""
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    earlier = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_BYTES, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        # a signal that is still on its way would end the process where nobody had a handler
        signal.signal(signal.SIGPROF, signal.SIG_IGN if earlier == signal.SIG_DFL else earlier)
