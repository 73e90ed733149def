"""Durations in words."""


def tell_time(seconds: float) -> str:
    """A duration with two figures or so: `45 s`, `12 min`, `5.3 h`, `3.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
