"""What can go wrong, as one small tree: catch `TesseraError` to catch it all."""

from __future__ import annotations

from collections.abc import Sequence


class TesseraError(Exception):
    """Base of every error that this package raises on purpose."""


class CubeError(TesseraError, ValueError):
    """Imagery can't be made into a cube, or a cube can't be used; every fault found is listed, each with its fix.

    Parameters
    ----------
    faults : str or sequence of str
        One sentence or two for each fault: the problem, then what to do. They are kept as the attribute `faults`.
    heading : str, optional
        What they are faults of. Without it a single fault is the whole message.
    """

    def __init__(self, faults: str | Sequence[str], heading: str = "") -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        self.heading = heading
        count = f"{len(self.faults)} faults" if len(self.faults) > 1 else ""
        if heading or count:
            head = f"{heading} ({count})" if heading and count else heading or count
            super().__init__(head + ":\n" + "\n".join(f"  - {fault}" for fault in self.faults))
        else:
            super().__init__(*self.faults)

    def __reduce__(self) -> tuple[type[CubeError], tuple[list[str], str]]:
        return type(self), (self.faults, self.heading)


class SchemaError(TesseraError, ValueError):
    """A dataset isn't what the function needs (embeddings, say), or a value lies outside what it accepts."""


class GridError(TesseraError, ValueError):
    """No usable grid: no CRS, uneven spacing, or a place outside the map."""


class OutsideError(GridError, IndexError):
    """A place or a rectangle has no pixel of the map; an IndexError too, for geotessera, which expects one."""


class CheckpointError(TesseraError, ValueError):
    """A file of weights is damaged, foreign or of another version."""


class ModelUnavailableError(CheckpointError, FileNotFoundError):
    """The weights aren't on this machine and could not be fetched."""

    def __str__(self) -> str:  # FileNotFoundError would print errno fields
        return str(self.args[0]) if self.args else ""


class VersionMismatchError(TesseraError, ValueError):
    """Embeddings, weights or imagery of different models or variants were about to be mixed."""


class StoreError(TesseraError, OSError):
    """A store, a tile or a server's answer can't be read or isn't to be trusted; the message names it.

    Also one of our own that is unfinished, of something else, or has no room on the disk.
    """


class MissingExtraError(TesseraError, ImportError):
    """A package that this function needs isn't installed; the message names the extra that brings it."""


class DeviceError(TesseraError, RuntimeError):
    """The device or precision asked for isn't to be had here."""


class TesseraWarning(UserWarning):
    """Something was assumed, or done less well than it could be; the message says what and why."""
