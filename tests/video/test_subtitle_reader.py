"""Subtitles of files: streams and sidecars of every format and encoding, and hostile ones."""

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.clips import add_sound
from tests.engine.asking import CLIP
from tests.subtitle_files import CUES, ass, srt, vtt, with_stream
from vidqa.errors import VideoNotFound, VideoUnreadable
from vidqa.types import VideoInfo
from vidqa.utils.cues import Cue
from vidqa.video import subtitle_files, subtitle_reader
from vidqa.video.reader import Decoding, open_source, open_video, probe_facts
from vidqa.video.subtitle_files import MAX_FILE_BYTES, decoded, find_sidecar, language_of, subtitle_identity

TEXTS = {"srt": srt, "vtt": vtt, "ass": ass}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip of 4 s alone in a folder."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(Path(CLIP).read_bytes())
    return path


def cues_of(video: VideoInfo) -> tuple[Cue, ...]:
    return video.subtitles.cues if video.subtitles else ()


@pytest.mark.parametrize(
    ("kind", "suffix", "text"), [("mov_text", "mp4", srt()), ("srt", "mkv", srt()), ("ass", "mkv", ass()),
                                 ("webvtt", "mkv", vtt())],
)  # fmt: skip
def test_streams(kind: str, suffix: str, text: str, tmp_path: Path) -> None:
    clip = with_stream(CLIP, tmp_path / f"clip.{suffix}", text, kind)
    for subs in ("auto", "embedded"):
        with open_video(str(clip), subs=subs) as reader:  # through the decoder's process
            found = reader.info.subtitles
            assert found is not None and found.cues == CUES
            assert (found.source, found.language, reader.notes) == ("stream 1", "eng", ())
            assert len(list(reader.frames([0, 50, 95]))) == 3
    assert probe_facts(str(clip), subs="off") == probe_facts(str(clip))
    assert probe_facts(str(clip)).subtitles is None


@pytest.mark.parametrize("kind", TEXTS)
def test_sidecars(kind: str, clip: Path) -> None:
    clip.with_suffix(f".{kind}").write_text(TEXTS[kind]())
    found = probe_facts(str(clip), subs="auto").subtitles
    assert found is not None and found.cues == CUES and (found.source, found.language) == (f"clip.{kind}", "")
    assert probe_facts(str(clip), subs="embedded").subtitles is None


def test_the_content_counts_not_the_name(clip: Path) -> None:
    clip.with_suffix(".srt").write_text(vtt())
    assert cues_of(probe_facts(str(clip), subs="auto")) == CUES
    clip.with_suffix(".srt").write_text(ass())
    assert cues_of(probe_facts(str(clip), subs="auto")) == CUES


def test_which_sidecar(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    folder, found = clip.parent, []
    for name in ("clip.notes.txt", "clips.srt", "clip.fr.srt", "clip.en.vtt", "clip.de.srt", "clip.vtt", "clip.srt"):
        (folder / name).write_text("x")
        found.append(Path(side).name if (side := find_sidecar(str(clip))) else None)
    assert found == [None, None, "clip.fr.srt", "clip.en.vtt", "clip.de.srt", "clip.vtt", "clip.srt"]
    assert find_sidecar(str(folder)) is None and find_sidecar(str(folder / "gone.mp4")) is None


def test_languages_are_not_searched_in_huge_folders(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip.with_suffix(".en.srt").write_text(srt())
    assert find_sidecar(str(clip)) is not None
    monkeypatch.setattr(subtitle_files, "_MAX_LISTED", 1)
    assert find_sidecar(str(clip)) is None
    clip.with_suffix(".srt").write_text(srt())
    assert find_sidecar(str(clip)) is not None


def test_captions_by_vidqa_are_passed_over_in_any_encoding(clip: Path) -> None:
    marked = srt().replace("01,500\n", f"01,500 {subtitle_files.CAPTION_MARK}\n", 1)
    assert marked != srt()
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        clip.with_suffix(".srt").write_bytes(marked.replace("\n", "\r\n").encode(encoding))
        assert find_sidecar(str(clip)) is None
        found = probe_facts(str(clip), subs="auto")
        assert found.subtitles is None and len(found.notes) == 1 and "clip.srt has captions" in found.notes[0]
        assert cues_of(probe_facts(str(clip), subs=str(clip.with_suffix(".srt")))) == CUES
    clip.with_suffix(".srt").write_text(srt((*CUES, Cue(3.6, 3.7, f"--> {subtitle_files.CAPTION_MARK}"))))
    assert find_sidecar(str(clip)) is not None


def test_languages_in_names() -> None:
    names = {"clip.en.srt": "en", "clip.pt-BR.srt": "pt-BR", "a.b.deu.vtt": "deu", "clip.srt": "", "clip.1080p.srt": ""}
    assert {name: language_of(name) for name in names} == names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_encodings(encoding: str, clip: Path) -> None:
    """Without a mark UTF-16 is known by its zeros; what is no Unicode is Windows-1252, and that is said."""
    said = [Cue(0.5, 1.5, "Café – “naïve”")]
    clip.with_suffix(".srt").write_bytes(srt(said).encode(encoding))
    video = probe_facts(str(clip), subs="auto")
    assert cues_of(video) == tuple(said)
    notes = ("clip.srt is not UTF-8: it is read as Windows-1252.",) if encoding == "cp1252" else ()
    assert video.notes == notes


def test_short_and_empty_bytes_are_text() -> None:
    assert decoded(b"") == ("", "utf-8")
    assert decoded(b"1\0") == ("1\0", "utf-8")


def test_a_named_file_wins_and_a_missing_one_is_an_error(clip: Path, tmp_path: Path) -> None:
    clip.with_suffix(".srt").write_text(srt())
    other = tmp_path / "said elsewhere.vtt"
    other.write_text(vtt(CUES[:1]))
    for isolated in (True, False):
        with open_video(str(clip), isolated=isolated, subs=str(other)) as reader:
            assert cues_of(reader.info) == CUES[:1]
    with pytest.raises(VideoNotFound, match=r"no subtitle file .*gone\.srt"):
        open_video(str(clip), subs=str(tmp_path / "gone.srt"))


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, random.Random(1).randbytes(4096), b"just a text\n" * 50, b"WEBVTT\n\n", b"1\n"],
    ids=["empty", "zeros", "noise", "text", "a header", "a number"],
)
def test_a_file_without_subtitles_is_a_note_or_an_error(content: bytes, clip: Path) -> None:
    """A sidecar is left aside and said; a file that was asked for is an error."""
    side = clip.with_suffix(".srt")
    side.write_bytes(content)
    video = probe_facts(str(clip), subs="auto")
    assert video.subtitles is None and any("clip.srt" in note for note in video.notes)
    with pytest.raises(VideoUnreadable, match=r"clip\.srt"):
        probe_facts(str(clip), subs=str(side))


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_empty_captions_are_said_once(kind: str, clip: Path) -> None:
    lines = [Cue(float(n), n + 0.5, text) for n, text in enumerate(("one", "", "<i></i>", "four"))]
    clip.with_suffix(f".{kind}").write_text(TEXTS[kind](lines))
    video = probe_facts(str(clip), subs="auto")
    assert [cue.text for cue in cues_of(video)] == ["one", "four"]
    assert video.notes == (f"clip.{kind}: 2 of 4 captions are empty.",)
    tight = "1\n00:00:01.000 --> 00:00:02.000\n\n2\n00:00:02.000 --> 00:00:03.000\ntwo\n"
    clip.with_suffix(f".{kind}").write_text("WEBVTT\n\n" * (kind == "vtt") + tight)
    assert probe_facts(str(clip), subs="auto").notes == (f"clip.{kind}: 1 of 2 captions is empty.",)
    clip.with_suffix(f".{kind}").write_text(TEXTS[kind](lines[:1] * 2))  # the same twice is shown once, and not empty
    assert probe_facts(str(clip), subs="auto").notes == ()


def test_a_useless_sidecar_leaves_the_stream(tmp_path: Path) -> None:
    clip = with_stream(CLIP, tmp_path / "clip.mkv", srt(), "srt")
    clip.with_suffix(".srt").write_bytes(b"nothing")
    assert cues_of(probe_facts(str(clip), subs="auto")) == CUES


def test_files_that_are_too_large_or_no_files(clip: Path, tmp_path: Path) -> None:
    side = clip.with_suffix(".srt")
    side.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert any("8.0 MiB at most" in note for note in probe_facts(str(clip), subs="auto").notes)
    side.unlink()
    side.symlink_to("/dev/zero")
    assert probe_facts(str(clip), subs="auto").subtitles is None
    with pytest.raises(VideoUnreadable, match="not a regular file"):
        probe_facts(str(clip), subs="/dev/zero")
    pipe = tmp_path / "pipe.srt"
    os.mkfifo(pipe)
    with pytest.raises(VideoUnreadable, match="not a regular file"):
        probe_facts(str(clip), subs=str(pipe))


def test_hostile_lines(clip: Path) -> None:
    """Escape codes, tags without end, a line of a megabyte, times that go back or nowhere."""
    lines = [
        Cue(0.1, 0.4, "\x1b[2J\x1b]52;c;aGk=\x07clear"), Cue(0.5, 0.9, "<" * 5000), Cue(1.0, 1.2, "{" * 5000 + "x"),
        Cue(1.3, 1.4, "long " * 200_000), Cue(1.5, 1.2, "backwards"), Cue(359_999.0, 359_999.5, "in four days"),
    ]  # fmt: skip
    clip.with_suffix(".srt").write_text(srt(lines))
    with open_video(str(clip), subs="auto") as reader:
        found = cues_of(reader.info)
    assert {"[2J]52;c;aGk=clear", "backwards", "in four days"} <= {cue.text for cue in found}
    assert all(cue.text.isprintable() and len(cue.text) <= 500 for cue in found)
    assert all(cue.start_seconds <= cue.end_seconds for cue in found)


def test_the_number_of_events_is_bounded_and_said(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip.with_suffix(".srt").write_text(srt([Cue(n / 10, n / 10 + 0.05, f"line {n}") for n in range(40)]))
    monkeypatch.setattr(subtitle_reader, "_MAX_EVENTS", 10)
    video = probe_facts(str(clip), subs="auto")
    assert len(cues_of(video)) == 10
    assert video.notes == ("The subtitles are read until 0:00.9 only: the rest is too long or damaged.",)


def test_names_are_shown_safely(tmp_path: Path) -> None:
    clip = tmp_path / "a\x1b[2Jb.mp4"
    clip.write_bytes(Path(CLIP).read_bytes())
    clip.with_suffix(".srt").write_text(srt())
    found = probe_facts(str(clip), subs="auto").subtitles
    assert found is not None and found.source == "a\\x1b[2Jb.srt"


def test_times_count_from_where_a_player_counts(tmp_path: Path) -> None:
    """The file begins at 10 s: so do its packets, of pictures and of subtitles alike."""
    later = tuple(Cue(cue.start_seconds + 10, cue.end_seconds + 10, cue.text) for cue in CUES)
    clip = with_stream(CLIP, tmp_path / "clip.mkv", srt(later), "srt", begin=10.0)
    video = probe_facts(str(clip), subs="auto")
    assert video.start_seconds == pytest.approx(10)
    assert [cue.start_seconds for cue in cues_of(video)] == [cue.start_seconds for cue in CUES]


def test_of_several_streams_the_default_is_read_and_forced_ones_last(tmp_path: Path) -> None:
    clip = with_stream(CLIP, tmp_path / "both.mkv", srt(), "srt", forced=srt(CUES[:1]))
    found = probe_facts(str(clip), subs="auto").subtitles
    assert found is not None and (found.cues, found.source) == (CUES, "stream 2")


def test_bitmaps_are_named_as_not_readable(tmp_path: Path) -> None:
    clip = tmp_path / "bitmap.mkv"
    with av.open(CLIP) as source, av.open(str(clip), "w") as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        bitmap = out.add_stream("dvb_subtitle")
        bitmap.codec_context.time_base = Fraction(1, 1000)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                out.mux(packet)
    video = probe_facts(str(clip), subs="auto")
    assert video.subtitles is None
    assert [note for note in video.notes if "dvb" in note and "not read" in note]


def test_a_changed_sidecar_is_read_again_in_the_same_process(clip: Path) -> None:
    side = clip.with_suffix(".srt")
    info, source = open_source(str(clip), Decoding(subs="auto"))
    with open_video(str(clip)) as other:
        assert other.info.subtitles is None and info.subtitles is None
    try:
        before = subtitle_identity(str(clip), "auto")
        side.write_text(srt())
        assert subtitle_identity(str(clip), "auto") != before
        assert cues_of(source.open(str(clip))) == CUES  # type: ignore[attr-defined]  # a DecoderProcess
    finally:
        source.close()


def test_sound_is_known_where_subtitles_are_asked_for(clip: Path, tmp_path: Path) -> None:
    loud = add_sound(Path(CLIP), tmp_path / "loud.mp4", 4.0)
    assert probe_facts(str(loud), subs="auto").has_sound and not probe_facts(str(loud)).has_sound
    assert not probe_facts(str(clip), subs="auto").has_sound


def test_pictures_take_a_named_file_only(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with av.open(CLIP) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 24 == 0:
                frame.to_image().save(folder / f"{number}.png")
    (tmp_path / "pictures.srt").write_text(srt())
    assert probe_facts(str(folder), subs="auto").subtitles is None
    assert cues_of(probe_facts(str(folder), subs=str(tmp_path / "pictures.srt"))) == CUES
