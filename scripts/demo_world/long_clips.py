"""Long video files with short events before a still or noisy background, made in seconds.

Only the groups of pictures with an event are rendered and encoded one by one; one group without an event is encoded
once, and its packets are repeated. Keyframes come at a fixed distance, so none marks an event.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from demo_world.render import render_clips_at
from demo_world.world import Scene

_CODEC = "libx264"
_BATCH = 32  # pictures that are rendered at once


@dataclass(frozen=True, slots=True)
class LongEvent:
    """A scene's actors, seen for `seconds` from `start_seconds` on; the scene's times are fractions of that.

    Its background and seed do not count: the clip has its own.
    """

    scene: Scene
    start_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LongClip:
    """A clip of `seconds` at `fps` pictures a second. `noise` is the standard deviation of a sensor's noise, 0 to 255.

    `background` and `seed` are those of a Scene; a keyframe comes every `keyframe_seconds`.
    """

    seconds: float
    events: tuple[LongEvent, ...] = ()
    noise: float = 0.0
    background: str = "plain"
    seed: int = 0
    fps: int = 10
    width: int = 320
    height: int = 240
    keyframe_seconds: float = 10.0
    crf: int = 26

    @property
    def count(self) -> int:
        """Pictures in the file."""
        return max(round(self.seconds * self.fps), 2)

    @property
    def group(self) -> int:
        """Pictures from one keyframe to the next."""
        return max(round(self.keyframe_seconds * self.fps), 2)


def frames_of(clip: LongClip, event: LongEvent) -> range:
    """Return the indices of the pictures in which an event is seen."""
    first = round(event.start_seconds * clip.fps)
    return range(first, min(first + max(round(event.seconds * clip.fps), 1), clip.count))


def write_long_clip(clip: LongClip, path: Path) -> None:
    """Render and encode a clip as H.264, by x264's veryfast preset."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(_CODEC, rate=Fraction(clip.fps), options=_options(clip))
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.codec_context.thread_count = 1  # the same file on every machine
        quiet = _encoded(stream.codec_context, clip, range(clip.group), events=())
        tick = Fraction(1, clip.fps)
        for first in range(0, clip.count, clip.group):
            frames = range(first, min(first + clip.group, clip.count))
            events = [event for event in clip.events if _overlap(frames_of(clip, event), frames)]
            usual = not events and len(frames) == clip.group
            for pts, dts, key, data in quiet if usual else _encoded(_encoder(clip), clip, frames, events):
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.time_base = pts + first, dts + first, tick
                packet.stream, packet.is_keyframe, packet.duration = stream, key, 1
                container.mux(packet)


def _options(clip: LongClip) -> dict[str, str]:
    params = f"scenecut=0:keyint={clip.group}:min-keyint={clip.group}:open-gop=0"
    return {"preset": "veryfast", "crf": str(clip.crf), "x264-params": params}


def _encoder(clip: LongClip) -> Any:
    context: Any = av.CodecContext.create(_CODEC, "w")
    context.width, context.height, context.pix_fmt = clip.width, clip.height, "yuv420p"
    context.time_base, context.framerate, context.thread_count = Fraction(1, clip.fps), Fraction(clip.fps), 1
    context.options = _options(clip)
    context.flags |= av.codec.context.Flags.global_header
    return context


def _encoded(
    encoder: Any, clip: LongClip, frames: range, events: Sequence[LongEvent]
) -> list[tuple[int, int, bool, bytes]]:
    """Return the packets of a group as (pts, dts, keyframe, data), times in pictures from the group's first one."""
    packets: list[Any] = []
    for number, picture in enumerate(_pictures(clip, frames, events)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, clip.fps)
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    ticks = [Fraction(packet.time_base) * clip.fps for packet in packets]
    return [
        (round(packet.pts * tick), round(packet.dts * tick), packet.is_keyframe, bytes(packet))
        for packet, tick in zip(packets, ticks, strict=True)
    ]


def _pictures(clip: LongClip, frames: range, events: Sequence[LongEvent]) -> Iterator[np.ndarray]:
    """Yield pictures (height, width, 3) uint8."""
    empty = _rendered(clip, Scene((), clip.background, clip.seed), [0.0])[0]
    shown = {frame: picture for event in events for frame, picture in _event_pictures(clip, frames, event)}
    grain = np.random.default_rng((clip.seed, frames.start))
    for frame in frames:
        picture = shown.get(frame, empty)
        if clip.noise:
            noisy = picture + clip.noise * grain.standard_normal(picture.shape, np.float32)
            picture = noisy.round().clip(0, 255).astype(np.uint8)
        yield picture


def _event_pictures(clip: LongClip, frames: range, event: LongEvent) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the pictures of an event within a group, with their indices."""
    seen, scene = frames_of(clip, event), replace(event.scene, background=clip.background, seed=clip.seed)
    within = range(max(seen.start, frames.start), min(seen.stop, frames.stop))
    for first in range(within.start, within.stop, _BATCH):
        part = range(first, min(first + _BATCH, within.stop))
        moments = [(frame - seen.start + 0.5) / len(seen) for frame in part]
        yield from zip(part, _rendered(clip, scene, moments), strict=True)


def _rendered(clip: LongClip, scene: Scene, moments: Sequence[float]) -> np.ndarray:
    pixels = render_clips_at([scene], moments, clip.height, clip.width)[0]
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
