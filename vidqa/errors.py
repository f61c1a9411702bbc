"""The errors that vidqa raises on purpose. This file knows no other part of the project.

VidqaError
├── UsageError            a request that contradicts itself or asks for what cannot be
├── ModelError            the model cannot be used
│   ├── NotFinite         its numbers became NaN or infinite: there is no answer in them
│   └── ModelMissing      not in the cache and not fetched; names the command that fetches it
├── VideoError            the video cannot be used
│   ├── VideoNotFound     no such file, or not a file
│   ├── VideoUnreadable   the container, the stream or its codec cannot be read
│   │   └── PictureTooLarge   more pixels, a longer side or a longer shape than is decoded
│   └── VideoTooDamaged   decoding stopped before half of the asked span
├── AttentionUnavailable  the asked-for attention kernel would not be the one that runs
├── HistoryError          the history's file cannot be used; what it holds is left alone
├── DoesNotFit            the plan is larger than the memory or the context that there is
└── Interrupted           the user stopped the work

Each carries what happened (with its numbers) and the remedy. Which exit code an error
becomes is the command line's business.
"""


class VidqaError(Exception):
    """Something went wrong that vidqa can explain: `what` happened, and the `remedy`."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".strip()


class UsageError(VidqaError):
    """A request that contradicts itself or asks for what cannot be."""


class ModelError(VidqaError):
    """The model cannot be used."""


class ModelMissing(ModelError):
    """The model is neither cached nor reachable."""


class NotFinite(ModelError):
    """The model's logits are NaN or infinite."""


class VideoError(VidqaError):
    """The video cannot be used."""


class VideoNotFound(VideoError):
    """No such file, or not a regular file."""


class VideoUnreadable(VideoError):
    """The container, the stream or its codec cannot be read."""


class PictureTooLarge(VideoUnreadable):
    """A picture has more pixels, a longer side or a longer shape than is decoded."""


class VideoTooDamaged(VideoError):
    """Decoding stopped before half of the asked span."""


class AttentionUnavailable(VidqaError):
    """The asked-for attention kernel would not be the one that runs."""


class HistoryError(VidqaError):
    """The history's file cannot be used, or what was asked of it is not there."""


class DoesNotFit(VidqaError):
    """The plan is larger than the memory or the context that there is.

    `smallest_budget_bytes`: what the least that was asked for would need, where that is known.
    """

    def __init__(self, what: str, remedy: str = "", *, smallest_budget_bytes: int | None = None) -> None:
        super().__init__(what, remedy)
        self.smallest_budget_bytes = smallest_budget_bytes


class Interrupted(VidqaError):
    """The user stopped the work."""
