"""The change signal of a video: how much of the picture changes, when, and where scenes are cut. Plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChangeSignal:
    """How much a video changes, from a scan of small gray pictures.

    `seconds` are when a player that counts from 0 shows each scanned picture, ascending; `change` is the share (0 to 1)
    of the picture's blocks that changed since the scanned picture before, 0 for the first one; noise and re-encoding
    do not count. `cuts` are the times of the first pictures of new scenes. `complete` is whether every frame was
    scanned; otherwise keyframes were, and the frames between them where time allowed.
    """

    seconds: tuple[float, ...]
    change: tuple[float, ...]
    cuts: tuple[float, ...] = ()
    complete: bool = True
