"""One run at a time in a folder."""

import os
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from cnnviz.core.errors import CnnvizError


def identity(path: Path) -> tuple[int, int]:
    """What a file or folder is, by whatever name."""
    status = path.stat()
    return status.st_dev, status.st_ino


class Lock:
    """Keeps other processes out of a folder for as long as it lives; this one may come again.

    The system lets go of it when the process ends, however that happens; nothing is written.
    """

    _held: ClassVar["WeakValueDictionary[tuple[int, int], Lock]"] = WeakValueDictionary()

    def __init__(self, file: int) -> None:
        """Locks a folder that nobody has, by an open file that is closed with the lock.

        Raises:
            BlockingIOError: somebody has it.
        """
        import fcntl

        self._file = file
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise  # any other is a file system's that knows no locks

    def __del__(self) -> None:
        os.close(self._file)

    @classmethod
    def of(cls, path: Path) -> "Lock | None":
        """The lock of a folder; None where the system has none.

        Raises:
            CnnvizError: another process writes there.
        """
        if os.name != "posix":
            return None
        key = identity(path)
        try:
            lock = cls._held.get(key) or cls(os.open(path, os.O_RDONLY))
        except BlockingIOError as error:
            raise CnnvizError(
                f"another run writes to {path}; wait for it, or give --out another folder"
            ) from error
        cls._held[key] = lock
        return lock
