"""What is said where a download fails, and the classes of huggingface_hub's errors, which is imported when needed."""

from typing import TYPE_CHECKING

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.hub import cache_folder
from vidqa.models.registry import short_name
from vidqa.utils.units import format_decimal_bytes

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


def hub_refused(repository: str, error: "HfHubHTTPError") -> ModelError:
    """Return the error for an answer of the hub that refuses."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"{repository} cannot be fetched: the hub has no such model, or shows it to certain accounts only.",
            "Check the name, and set HF_TOKEN for a private model.",
        )
    return ModelError(
        f"{repository} cannot be fetched: the hub answered {error.response.status_code} "
        f"{error.response.reason_phrase}.",
        "Check the name and your HF_TOKEN, or try again later.",
    )


def hub_offline(repository: str, here_bytes: int, seconds: float, error: Exception) -> ModelMissing:
    """Return the error for a hub that cannot be reached."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    short = short_name(repository)
    here = format_decimal_bytes(here_bytes)
    rest = f"; {here} of it are here, and the download goes on from there" if here_bytes else ""
    if isinstance(error, OfflineModeIsEnabled):
        return ModelMissing(
            f"{repository} is not fetched: HF_HUB_OFFLINE says that this machine is offline{rest}.",
            "Unset it and try again.",
        )
    answer = f"did not answer within {seconds:g} s" if _is_timeout(error) else "cannot be reached"
    return ModelMissing(
        f"Offline: {constants.ENDPOINT} {answer}, so {repository} is not fetched{rest}.",
        f"Connect to the internet, then type `vidqa pull {short}`.",
    )


def _is_timeout(error: Exception) -> bool:
    return "Timeout" in type(error).__name__  # the class is that of the HTTP library, which differs by version


def transport_error() -> type[Exception]:
    """Return the class of a broken download's errors: the HTTP library depends on huggingface_hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def download_failure(repository: str, here_bytes: int, total_bytes: int, error: Exception) -> ModelError:
    """Return the error for what ended a download: an answer that refuses, the disk, or the connection."""
    from huggingface_hub.errors import HfHubHTTPError

    for one in (error, error.__cause__):  # huggingface_hub raises a FileNotFoundError from some answers
        if isinstance(one, HfHubHTTPError):  # before OSError, which it also is
            return hub_refused(repository, one)
    if isinstance(error, OSError) and error.errno is not None:
        return ModelError(
            f"{repository} cannot be written to {cache_folder()}: {error.strerror}.",
            "Make it writable, or set HF_HUB_CACHE to another folder.",
        )
    return ModelMissing(
        f"The connection broke: {format_decimal_bytes(here_bytes)} of {format_decimal_bytes(total_bytes)} of "
        f"{repository} are here.",
        f"Type `vidqa pull {short_name(repository)}` again: it goes on from there.",
    )
