"""What a page is made of; the templates know these parts and no others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Grid:
    """A table: headings and cells as text, and which columns hold words rather than figures."""

    part: ClassVar[str] = "grid"
    headings: list[str]
    rows: list[list[str]]
    words: frozenset[int] = field(default_factory=frozenset)
    name: str = ""  # its class in HTML
    common: str = ""  # what all rows share, in place of its columns


@dataclass(frozen=True)
class Picture:
    """A figure as both pages show it."""

    part: ClassVar[str] = "picture"
    name: str
    title: str
    caption: str
    svg: str

    @property
    def file(self) -> str:
        return f"{self.name}.svg"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    part: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    part: ClassVar[str] = "text"
    text: str


Part = Grid | Picture | Heading | Text


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    title: str
    parts: tuple[Part, ...]

    @property
    def anchor(self) -> str:
        """Where a link finds it.

        >>> Section("End to end, measured", ()).anchor
        'end-to-end-measured'
        """
        return "-".join(re.findall(r"\w+", self.title.lower()))
