"""Which version of Shoal this is; knows no part of it."""

from importlib.metadata import PackageNotFoundError, version

UNKNOWN = "unknown"


def shoal_version() -> str:
    """The installed version; `UNKNOWN` for a checkout that is on the path without being installed."""
    try:
        return version("shoal")
    except PackageNotFoundError:
        return UNKNOWN
