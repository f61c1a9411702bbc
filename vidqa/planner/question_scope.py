"""Whether a question is about a video as a whole: then no part of it matters more, and frames stay even."""

import re

# A question that asks for a whole: by a verb of retelling, by naming all of the video, or by its gist. A question such
# as "what happens?" names nothing that could be looked for, and "what happens when the door opens?" does.
_VIDEO = "(video|clip|film|movie|recording|footage)"
_WHEN = f"(here|first|last|next|then|finally|at first|(at|in) the (start|beginning|end)|in (the |this )?{_VIDEO})"
# An outline, a caption or a plot can also be in the picture: it is of the video where the question asks for one.
_ACCOUNT = "(outlines?|captions?|plot)"
_ASKED = "(write|give|make|create|generate|produce|provide|suggest|need|want)"
_WHOLE = re.compile(
    r"\b(detailed description|describe everything)\b|\bdescribe( it| this)?( in detail)?\W*$"
    r"|\b(summar\w+|recap\w*|overview|synopsis|retell|gist|storyline)\b"
    rf"|\b{_ACCOUNT} ((of|for) )?(the |this |my )?(whole |entire |full )?{_VIDEO}\b"
    rf"|\b{_ASKED}( me)?( an?| one)?( [\w,-]+){{0,2}} {_ACCOUNT}\b"
    rf"|^\W*(please )?((an?|one|short|brief|detailed) )*{_ACCOUNT}(,? (this|it|please))?\W*$"
    r"|\b(what( is|'s)|describe|explain|tell me) the plot( about)?\W*$"
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
