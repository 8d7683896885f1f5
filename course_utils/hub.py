"""Whether the Hub can be asked, found out in seconds instead of after half a minute of retries."""

from __future__ import annotations

from .errors import CourseError

REACH_SECONDS = 5.0


def transport_errors() -> tuple[type[Exception], ...]:
    """What the Hub's HTTP client raises when a connection fails or a server refuses.

    The client differs between versions of huggingface_hub (requests, httpx); the parent of its own
    error class is the client's, whichever it is.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError)


def reachable(name: str, kind: str = "model") -> bool:
    """Whether the Hub answers within 5 s when asked for the model or data set `name`.

    "No such thing" and "log in first" are answers; a proxy's refusal or a server's fault is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        ask(name, timeout=REACH_SECONDS)
    except HfHubHTTPError as error:
        return error.response is not None and error.response.status_code in (401, 404)
    except HFValidationError:
        raise CourseError(f"'{name}' is no name of the Hub; it looks like 'owner/name'.") from None
    except transport_errors():
        return False
    return True
