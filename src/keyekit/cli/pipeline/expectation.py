"""What a stage has to reach, written as a comparison: ``after >= before + 0.2``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Expectation"]

_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.Eq: operator.eq,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_NAMES = ("before", "after")
_ALLOWED = "compare after, before and numbers by >=, <=, >, < or ==, with +, - and *, such as 'after >= before + 0.2'"


@dataclass(frozen=True, slots=True)
class Expectation:
    """A comparison of what a metric was before a stage with what it is after.

    Args:
        text: The comparison.

    Raises:
        ValueError: If it is no such comparison.

    Example:
        >>> Expectation("after >= before + 0.2").holds(before=0.5, after=0.8)
        True
        >>> Expectation("before <= 0.5").holds(before=0.6, after=0.8)
        False
    """

    text: str

    def __post_init__(self) -> None:
        self.holds(before=0.0, after=0.0)

    @property
    def needs_before(self) -> bool:
        """Whether it speaks of the value before."""
        return any(isinstance(node, ast.Name) and node.id == "before" for node in ast.walk(self._tree()))

    def holds(self, *, before: float, after: float) -> bool:
        """Whether two values are as expected; NaN never is."""
        tree = self._tree()
        if not isinstance(tree, ast.Compare):
            raise ValueError(f"{self.text!r} compares nothing: {_ALLOWED}")
        values = {"before": before, "after": after}
        terms = [self._value(node, values) for node in (tree.left, *tree.comparators)]
        pairs = zip(terms, terms[1:], tree.ops, strict=False)
        return all(self._comparison(sign)(left, right) for left, right, sign in pairs)

    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"{self.text!r} is no comparison: {_ALLOWED}") from error

    def _comparison(self, sign: ast.cmpop) -> Callable[[float, float], bool]:
        if type(sign) not in _COMPARISONS:
            raise ValueError(f"{self.text!r} compares by something else: {_ALLOWED}")
        return _COMPARISONS[type(sign)]

    def _value(self, node: ast.expr, values: dict[str, float]) -> float:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return float(number)
            case ast.Name(id=name) if name in _NAMES:
                return values[name]
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self._value(inner, values)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
                value = _ARITHMETIC[type(sign)](self._value(left, values), self._value(right, values))
                return value if math.isfinite(value) else math.nan
        raise ValueError(f"{self.text!r} holds {ast.unparse(node)!r}: {_ALLOWED}")
