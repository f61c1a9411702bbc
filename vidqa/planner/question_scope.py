"""Whether a question is about a video as a whole: then no part of it matters more, and frames stay even."""

import re

# A question that asks for a whole: by a verb of retelling, by naming all of the video, or by its gist. A question such
# as "what happens?" names nothing that could be looked for, and "what happens when the door opens?" does.
_VIDEO = "(video|clip|film|movie|recording|footage)"
_WHEN = f"(here|first|last|next|then|finally|at first|(at|in) the (start|beginning|end)|in (the |this )?{_VIDEO})"
# "Outline", "caption" and "plot" may be seen in a picture too ("the caption below it"). They are about the video where
# the question begins with them as verbs or with a verb of making, and where it ends with those of the video.
_OF_VIDEO = rf"(( (of|for|in))? (it|this|that|everything|(the |this )?((whole|entire|full) )?({_VIDEO}|story)))?"
_HOW = r"( (in|with|as|using) .*(words?|sentences?|points?|lines?|paragraphs?|detail|list)| step by step| briefly)?\W*$"
_BEGIN = r"^\W*((please|can you|could you|would you|will you) )*"
_MAKE = "(give|write|make|create|draft|suggest|generate|provide|propose|add)( me| us)?"
_WHOLE = re.compile(
    r"\b(detailed description|describe everything)\b|\bdescribe( it| this)?( in detail)?\W*$"
    r"|\b(summar\w+|recap\w*|overview|synopsis|retell|gist|storyline)\b"
    rf"|{_BEGIN}(outline|caption)\b|{_BEGIN}{_MAKE}( (?!the\b)[\w-]+){{0,3}},? (outlines?|captions?)\b"
    rf"|{_BEGIN}{_MAKE} the captions? (of|for) (it|this|that|the|everything)\b(?! (wall|sign|board|screen))"
    rf"|\b(what( is|'s)|describe|explain|tell( me| us)?|{_MAKE}) the (plot|outline)( about)?{_OF_VIDEO}{_HOW}"
    rf"|\bdescribe (the |this )?(whole |entire |full )?({_VIDEO}|scenes?)\b"
    rf"|\b(whole|entire|full) {_VIDEO}\b"
    rf"|\bwhat( is|'s) (the |this )?{_VIDEO} about\b"
    rf"|\bwhat(('s| is) (happening|going on)| happens| happened| goes on|( do| can) you see)( {_WHEN})*\W*$"
    rf"|\bwhat (is|was|comes|came) (the )?(very )?(first|last)( thing| event)?( that happen(s|ed))?\W*$"
    rf"|\bhow does it (begin|start|end)\W*$"
    r"|\b(main|key) (events?|points?|topics?|ideas?)\b"
    r"|\b(zusammenfass\w*|fasse?\b.*\bzusammen|beschreib\w* das (ganze )?video)\b",
    re.IGNORECASE,
)


def asks_about_whole(question: str) -> bool:
    """Return whether a question is about the video as a whole (`--focus` keeps its frames even).

    A plan without a question is not: it has room for one that selects frames.
    """
    return _WHOLE.search(question) is not None
