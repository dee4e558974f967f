"""Tests of the versions for which a trial is valid."""

from __future__ import annotations

from autotune import provenance


def test_the_measuring_protocol_is_among_the_versions() -> None:
    """``Store.find`` requires equal versions, so trials of another protocol are not reused."""
    plain = provenance.versions()
    assert plain.startswith("torch ")
    assert provenance.versions("570.1", "protocol 1") == f"{plain}, driver 570.1, protocol 1"
    assert provenance.versions("", "protocol 1") != provenance.versions("", "protocol 2")
