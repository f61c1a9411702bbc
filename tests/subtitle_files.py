"""Subtitles for tests: cue lists as SRT, WebVTT and ASS text, and as streams muxed into clips."""

import io
from collections.abc import Sequence
from pathlib import Path

import av
from av.packet import Packet
from av.subtitles.subtitle import SubtitleSet

from vidqa.utils.cues import Cue

CUES = (
    Cue(0.5, 1.5, "Hello there."),
    Cue(1.6, 2.4, "The parcel is in the boat."),
    Cue(2.6, 3.5, "See you at noon."),
)
_ASS_HEADER = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def clock(seconds: float, point: str = ",", digits: int = 3) -> str:
    """A time as subtitle files write it."""
    units = round(seconds * 10**digits)
    whole, rest = divmod(units, 10**digits)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{rest:0{digits}}"


def srt(cues: Sequence[Cue] = CUES) -> str:
    """The cues as SubRip."""
    return "\n".join(
        f"{number}\n{clock(cue.start_seconds)} --> {clock(cue.end_seconds)}\n{cue.text}\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue] = CUES) -> str:
    """The cues as WebVTT."""
    times = [f"{clock(cue.start_seconds, '.')} --> {clock(cue.end_seconds, '.')}" for cue in cues]
    return "WEBVTT\n\n" + "\n".join(f"{time}\n{cue.text}\n" for time, cue in zip(times, cues, strict=True))


def ass(cues: Sequence[Cue] = CUES) -> str:
    """The cues as Advanced SubStation Alpha."""
    times = [[clock(seconds, ".", 2)[1:] for seconds in (cue.start_seconds, cue.end_seconds)] for cue in cues]
    return _ASS_HEADER + "".join(
        f"Dialogue: 0,{start},{end},Default,,0,0,0,,{cue.text}\n" for (start, end), cue in zip(times, cues, strict=True)
    )


def with_stream(
    clip: str | Path, target: Path, text: str, kind: str, language: str = "eng", begin: float = 0.0, forced: str = ""
) -> Path:
    """Copy a clip, its pictures `begin` seconds later, and add subtitles as a stream.

    `kind` is srt, webvtt or ass, copied, or mov_text, encoded from SRT. `forced` are subtitles in SRT that come before
    it, as those of foreign words do.
    """
    files = [(text, kind)] if not forced else [(forced, "srt"), (text, kind)]
    with av.open(str(clip)) as video, av.open(str(target), "w") as out:
        picture = video.streams.video[0]
        pictures, packets = out.add_stream_from_template(picture), list[Packet]()
        for packet in video.demux(picture):
            if packet.dts is not None:
                packet.pts, packet.dts = (one + round(begin / packet.time_base) for one in (packet.pts, packet.dts))
                packet.stream = pictures
                packets.append(packet)
        for written, one in files:
            packets += _subtitle_packets(out, written, one, language)
        if forced:
            out.streams[1].disposition = av.stream.Disposition.forced | av.stream.Disposition.default
        for packet in sorted(packets, key=lambda one: float(one.dts * one.time_base)):
            out.mux(packet)
    return target


def _subtitle_packets(out: av.container.OutputContainer, text: str, kind: str, language: str) -> list[Packet]:
    """Add a stream of subtitles to a file and return its packets."""
    packets = []
    with av.open(io.BytesIO(text.encode()), format="srt" if kind == "mov_text" else kind) as file:
        lines = file.streams.subtitles[0]
        if kind == "mov_text":
            stream = out.add_stream("mov_text")
            stream.codec_context.subtitle_header = _ASS_HEADER.encode()
            stream.time_base = stream.codec_context.time_base = lines.time_base
        else:
            stream = out.add_stream_from_template(lines)
        stream.metadata["language"] = language
        for packet in file.demux(lines):
            if not packet.size:
                continue
            if kind == "mov_text":
                (event,) = lines.decode2(packet).rects
                encoded = stream.codec_context.encode_subtitle(SubtitleSet.create(event.ass, 0, packet.duration))
                encoded.pts = encoded.dts = packet.pts
                encoded.duration, encoded.time_base = packet.duration, lines.time_base
                packet = encoded
            packet.stream = stream
            packets.append(packet)
    return packets
