"""Rules for the columns of a stored row by their type, for ``attrs``' ``field_transformer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

if TYPE_CHECKING:
    import attrs

Columns: TypeAlias = "list[attrs.Attribute[Any]]"


def by_type(rules: Mapping[Any, Mapping[str, Any]]) -> Callable[[type, Columns], Columns]:
    """Give each column the converter and validator that ``rules`` has for its type.

    A column with a converter or validator of its own keeps these alone.

    >>> from attrs import frozen, validators
    >>> @frozen(field_transformer=by_type({int: {"converter": int, "validator": validators.ge(0)}}))
    ... class Row:
    ...     count: int
    >>> Row("12")
    Row(count=12)
    """

    def transformed(row_type: type, columns: Columns) -> Columns:
        types = get_type_hints(row_type)
        return [
            column
            if column.converter or column.validator
            else column.evolve(**rules.get(types[column.name], {}))
            for column in columns
        ]

    return transformed
