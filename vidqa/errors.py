"""The errors of vidqa. Each says what happened, with the numbers, and the remedy."""


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
    """The model is neither cached nor reachable; the remedy names the command that fetches it.

    `repository` is what that command would fetch, where it is known.
    """

    def __init__(self, what: str, remedy: str = "", *, repository: str | None = None) -> None:
        super().__init__(what, remedy)
        self.repository = repository


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


class VideoOutOfDomain(VideoError):
    """The video is unlike those that the model was trained on, and the settings refuse an answer about it."""


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
