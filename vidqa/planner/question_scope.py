"""Whether a question is about a video as a whole: then no part of it matters more, and frames stay even."""

import re

# A question that asks for a whole: by a verb of retelling, by naming all of the video, or by its gist. A question such
# as "what happens?" names nothing that could be looked for, and "what happens when the door opens?" does.
_WHOLE = re.compile(
    r"\b(summar\w+|recap\w*|overview|outline|caption|synopsis|retell|gist|storyline|plot)\b"
    r"|\bdescribe (the |this )?(whole |entire |full )?(video|clip|film|movie|recording|footage|scenes?)\b"
    r"|\b(whole|entire|full) (video|clip|film|movie|recording|footage)\b"
    r"|\bwhat (is|'s) (the |this )?(video|clip|film|movie|recording|footage) about\b"
    r"|\bwhat (happens|is happening|happened|goes on|is going on)( in (the |this )?(video|clip|film|movie))?\W*$"
    r"|\b(main|key) (events?|points?|topics?|ideas?)\b"
    r"|\b(zusammenfass\w*|fasse?\b.*\bzusammen|beschreib\w* das (ganze )?video)\b",
    re.IGNORECASE,
)


def asks_about_whole(question: str) -> bool:
    """Return whether a question is about the video as a whole (`--focus` keeps its frames even).

    A plan without a question is not: it has room for one that selects frames.
    """
    return _WHOLE.search(question) is not None
