#!/usr/bin/env python3
"""Which videos pass as the demo model's world: fresh drawn clips, which have to, and real videos, which must not.

Drawn clips come from both renderers, with noise, before moving backgrounds, as batches of training, and as encoded
files of seconds and of minutes; real files (--videos), test patterns of FFmpeg's lavfi and pages of text are the
others. The limits were set on seed 1, by drawn clips alone, but for sharpness, which pages of text chose too; the
results are of another seed. Results go to benchmarks/results/.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, Bar, Row, Samples, report
from demo_world.batches import draw_shot
from demo_world.clips import draw_clip, write_clip
from demo_world.export import pixel_bounds
from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.moving_camera import render_panned
from demo_world.recipes import RECIPES
from demo_world.render import render_clips, render_clips_at
from demo_world.render_other import render_frames
from demo_world.sampled import draw_brief, draw_crowd, draw_even
from demo_world.world import BACKGROUNDS, Shot, draw_scene
from vidqa import EngineConfig, Request, Session
from vidqa.engine.domain_check import is_out_of_domain
from vidqa.errors import VidqaError
from vidqa.models.families.qwen3_vl.runtime import resize_frame
from vidqa.models.hub import demo_folder
from vidqa.models.training_domain import TrainingDomain, read_domain
from vidqa.video.frame_sampling import smart_resize

Pictures = Sequence[np.ndarray]
RECIPE = RECIPES["qwen3_vl"]
SHARES = {"training renderer": 0.2, "other renderer": 0.2, "moving camera": 0.2, "training batches": 0.3}
FILES = {"files of seconds": 0.07, "files of minutes": 0.03}
PATTERNS = (
    "testsrc", "testsrc2", "smptebars", "smptehdbars", "rgbtestsrc", "yuvtestsrc", "pal75bars", "mandelbrot", "life",
    "cellauto", "sierpinski", "gradients", "allrgb", "colorspectrum", "color=c=red", "color=c=orange",
)  # fmt: skip
BARS = {
    "drawn clips: all pass": Bar(0.99), "other videos: real files caught": Bar(0.95),
    "other videos: pages of text caught": Bar(0.95), "cost: seconds for an answer": Bar(0.005, "<="),
}  # fmt: skip


def sized(pictures: np.ndarray) -> Pictures:
    """Return source pictures at the size at which the demo model gets them."""
    least, most = pixel_bounds(RECIPE)
    size = smart_resize(*pictures.shape[1:3], factor=RECIPE.token_pixels, min_pixels=least, max_pixels=most)
    return [resize_frame(picture, *size).permute(1, 2, 0).numpy() for picture in pictures]


def drawn(kind: str, seed: int, index: int) -> Pictures:
    """Draw a clip of a kind, without a file."""
    if kind == "training batches":
        return training_clip(seed, index)
    spec = draw_clip(seed * 1_000_000 + index, RECIPE, other_renderer=kind != "training renderer")
    size = spec.height, spec.width
    if kind == "training renderer":
        pixels = render_clips_at([spec.scene], spec.fractions, *size)[0]
        return sized(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()))
    render = render_panned if kind == "moving camera" else render_frames
    return sized(render(spec.scene, spec.fractions, *size))


def training_clip(seed: int, index: int) -> Pictures:
    """Draw a clip as the last stage of training does: every other one with noise, every other pair moving."""
    rng = random.Random(f"domain/{seed}/{index}")
    shot = draw_shot(rng, 3, 1.0, RECIPE)
    if index % 2:
        shot = replace(shot, grain=rng.uniform(4, 24))
    if index // 2 % 2:
        shot = replace(shot, pan=(rng.uniform(-1.5, 1.5), rng.uniform(-1.5, 1.5)))
    clip = draw_even(rng, shot, timed=False)
    if shot.frames >= 12:
        clip = rng.choice((draw_brief, draw_crowd))(rng, shot)
    pixels = render_clips([clip.scene], [clip.fractions], shot)[0]
    return list(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()))


def write_drawn(kind: str, seed: int, index: int, path: Path) -> None:
    """Write a drawn clip of seconds or of a minute or more, the latter with noise and short events."""
    if kind == "files of seconds":
        write_clip(draw_clip(seed * 1_000_000 + 500_000 + index, RECIPE, other_renderer=index % 2 == 1), path)
        return
    rng = random.Random(f"long/{seed}/{index}")
    events = [LongEvent(draw_scene(rng, Shot(8, 112, 140)), start, rng.uniform(2, 8)) for start in (5.0, 25.0, 45.0)]
    noise = rng.choice((0.0, rng.uniform(2, 24)))
    clip = LongClip(rng.uniform(60, 240), tuple(events), noise, rng.choice(BACKGROUNDS), rng.getrandbits(31))
    write_long_clip(clip, path)


def write_pattern(source: str, path: Path) -> None:
    """Write 3 seconds of a source of FFmpeg's lavfi."""
    graph = av.filter.Graph()
    name, _, options = source.partition("=")
    size = "" if name == "allrgb" else "s=320x240:"
    begin = graph.add(name, f"{size}r=5" + (f":{options}" if options else ""))
    end = graph.add("buffersink")
    scale, form = graph.add("scale", "320:240"), graph.add("format", "yuv420p")
    for one, following in pairwise((begin, scale, form, end)):
        one.link_to(following)
    graph.configure()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=5, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(15):
            frame: Any = graph.pull()
            frame.pts, frame.time_base = number, 1 / stream.codec_context.framerate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def page(number: int) -> Pictures:
    """Draw a screen with lines of text, dark on light or light on dark, that scrolls."""
    rng = random.Random(f"page/{number}")
    paper, ink = rng.choice(((255, 30), (245, 60), (20, 220), (0, 255)))
    size, columns = rng.uniform(14, 36), rng.randint(12, 60)
    lines = ["".join(rng.choice("etaoin shrdlu") for _ in range(rng.randint(columns // 2, columns))) for _ in range(40)]
    pictures = []
    for top in (0, 20, 40, 60):
        screen = Image.new("RGB", (640, 400), (paper,) * 3)
        text = ImageDraw.Draw(screen)
        text.multiline_text((20, 20 - top), "\n".join(lines), fill=(ink,) * 3, font=ImageFont.load_default(size))
        pictures.append(np.asarray(screen))
    return sized(np.stack(pictures))


def judge(domain: TrainingDomain, pictures: Pictures) -> tuple[bool, float]:
    """Return whether a video is out of the domain, and the seconds that it took."""
    began = time.perf_counter()
    return is_out_of_domain(domain, pictures), time.perf_counter() - began


def is_plain(pictures: Pictures) -> bool:
    """Return whether nothing but black, gray or white is to be seen: "nothing visible" is true of it."""
    return all(int(picture.max()) - int(picture.min()) <= 8 for picture in pictures)


def rows(clips: int, seed: int, videos: Path, domain: TrainingDomain) -> Iterator[Row]:
    """Yield the rows of drawn clips, of others, and of the cost."""
    seconds, passed = list[float](), list[bool]()
    with tempfile.TemporaryDirectory() as folder, Session(EngineConfig(isolate_decoder=False)) as session:
        path = Path(folder) / "clip.mp4"

        def seen(file: Path) -> Pictures:
            return session.see(Request(video=str(file), question="?"))[1]

        def written(write: Callable[[], None]) -> Pictures:
            write()
            return seen(path)

        for kind, share in (SHARES | FILES).items():
            results = []
            for index in range(round(clips * share)):
                if kind in SHARES:
                    pictures = drawn(kind, seed, index)
                else:
                    pictures = written(partial(write_drawn, kind, seed, index, path))
                unlike, took = judge(domain, pictures)
                results.append(not unlike)
                seconds.append(took)
            passed += results
            yield share_row("drawn clips", f"{kind} pass", results)
        yield share_row("drawn clips", "all pass", passed)
        yield caught_row("real files", [(file.name, partial(seen, file)) for file in real(videos)], domain)
        patterns = [(one, partial(written, partial(write_pattern, one, path))) for one in PATTERNS]
        yield caught_row("test patterns", patterns, domain)
        screens = [(f"page {number}", partial(page, number)) for number in range(20)]
        yield caught_row("pages of text", screens, domain)
    samples = Samples.of(seconds)
    yield Row("cost", "seconds for an answer", samples.p50, "s", "median", samples)


def real(videos: Path) -> list[Path]:
    """Return the files of the folder of real videos."""
    return sorted(path for path in videos.iterdir() if path.suffix != ".md")


def caught_row(name: str, videos: Sequence[tuple[str, Callable[[], Pictures]]], domain: TrainingDomain) -> Row:
    """Return the share of videos that are out of the domain, without those that are plain or cannot be read."""
    results, missed, plain = [], [], []
    for video, pictures_of in videos:
        try:
            pictures = pictures_of()
        except VidqaError:
            continue
        caught = is_out_of_domain(domain, pictures)
        if not caught and is_plain(pictures):
            plain.append(video)
            continue
        results.append(caught)
        missed += [] if caught else [video]
    remarks = [f"missed: {', '.join(missed)}"] * bool(missed) + [f"plain, not counted: {', '.join(plain)}"] * bool(
        plain
    )
    return share_row("other videos", f"{name} caught", results, "; ".join(remarks))


def share_row(section: str, name: str, results: Sequence[bool], note: str = "") -> Row:
    return Row(
        section, name, sum(results) / len(results) if results else None, "share", f"of {len(results)}", note=note
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1200, help="drawn ones")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--videos", type=Path, required=True, metavar="FOLDER", help="real videos")
    parser.add_argument("--out", type=Path, default=RESULTS / "domain-cpu.json")
    arguments = parser.parse_args()
    domain = read_domain(demo_folder())
    assert domain is not None
    found = rows(arguments.clips, arguments.seed, arguments.videos, domain)
    return report("domain", found, BARS, arguments.out)


if __name__ == "__main__":
    raise SystemExit(main())
