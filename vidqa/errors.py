"""The errors of vidqa.

VidqaError
├── UsageError            a request that contradicts itself or cannot be met
├── ModelError            the model cannot be used
│   ├── NotFinite         its logits are NaN or infinite
│   └── ModelMissing      not in the cache and not reachable; the message names the command that fetches it
├── VideoError            the video cannot be used
│   ├── VideoNotFound     no such file, or not a file
│   ├── VideoUnreadable   the container, the stream or its codec cannot be read
│   │   └── PictureTooLarge   more pixels, a longer side or a longer shape than is decoded
│   └── VideoTooDamaged   decoding stopped before half of the requested span
├── AttentionUnavailable  the requested attention kernel would not be the one that runs
├── HistoryError          the history's file cannot be used; its contents are unchanged
├── DoesNotFit            the plan is larger than the available memory or the model's context
└── Interrupted           the user stopped the work

Each says what happened, with the numbers, and the remedy. `vidqa.cli.console` maps classes to exit codes.
"""


class VidqaError(Exception):
    """An error with an explanation: `what` happened, and the `remedy`."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".strip()


class UsageError(VidqaError):
    """A request that contradicts itself or cannot be met."""


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
    """Decoding stopped before half of the requested span."""


class AttentionUnavailable(VidqaError):
    """The requested attention kernel would not be the one that runs."""


class HistoryError(VidqaError):
    """The history's file cannot be used, or a session is not in it."""


class DoesNotFit(VidqaError):
    """The plan is larger than the available memory or the model's context.

    `smallest_budget_bytes` is the least budget for the request, where it is known.
    """

    def __init__(self, what: str, remedy: str = "", *, smallest_budget_bytes: int | None = None) -> None:
        super().__init__(what, remedy)
        self.smallest_budget_bytes = smallest_budget_bytes


class Interrupted(VidqaError):
    """The user stopped the work."""
