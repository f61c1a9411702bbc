"""A decoder for the transparency of VP8 and VP9 in WebM: FFmpeg's own decoders pass over it, libvpx gives it."""

from typing import Any

import av

_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def alpha_decoder(stream: Any, options: dict[str, str]) -> Any | None:
    """A codec context for a stream that says it has alpha; None for any other, or without libvpx."""
    name = _DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return None
    try:
        context = av.CodecContext.create(name, "r")
    except av.codec.codec.UnknownCodecError:
        return None
    context.options = options
    context.thread_count = stream.codec_context.thread_count
    return context
