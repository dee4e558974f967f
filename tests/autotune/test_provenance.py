"""What a trial is valid for."""

from __future__ import annotations

from autotune import provenance


def test_how_it_was_measured_is_among_the_versions() -> None:
    """A trial of another protocol is not recalled: ``Store.find`` asks for the same versions."""
    plain = provenance.versions()
    assert plain.startswith("torch ")
    assert provenance.versions("570.1", "protocol 1") == f"{plain}, driver 570.1, protocol 1"
    assert provenance.versions("", "protocol 1") != provenance.versions("", "protocol 2")
