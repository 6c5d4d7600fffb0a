"""Telling a hub that cannot be reached from other failures."""

# The HTTP libraries that huggingface_hub has used, and its own errors.
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub")


def is_unreachable(error: BaseException) -> bool:
    """True if the error comes from the network or the hub's client, not from our code."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK
