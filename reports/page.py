"""The parts of a page; the templates know only these."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Grid:
    """A table: headings and cells as text, and the columns that hold words instead of figures."""

    part: ClassVar[str] = "grid"
    headings: list[str]
    rows: list[list[str]]
    words: frozenset[int] = field(default_factory=frozenset)
    name: str = ""  # its class in HTML
    common: str = ""  # values shared by all rows, which replace their columns


@dataclass(frozen=True)
class Picture:
    """A figure, as shown on both pages."""

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
        """The target of links to this section.

        >>> Section("End to end, measured", ()).anchor
        'end-to-end-measured'
        """
        return "-".join(re.findall(r"\w+", self.title.lower()))
