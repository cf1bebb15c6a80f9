"""Conditions on rows, as `select --where` takes them, as an expression of pyarrow. Nothing of the text is run.

The words are Python's: comparisons of a column with a value or with a column, `in (1, 2)`, `is None`, joined by `and`,
`or`, `not` and brackets. A comparison with an absent cell is neither true nor false, as in SQL, and selects no row.
"""

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

import pyarrow.compute as pc

from batchgen.errors import InputError
from batchgen.scoring.metrics import METRICS

__all__ = ["read_condition"]

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def read_condition(text: str, columns: Collection[str]) -> pc.Expression:
    """The expression that a text says.

    Args:
        text: such as `clip_score > 25 and scheduler == "DDIM"`.
        columns: names that it may use.

    Raises:
        InputError: it says something else than conditions on these columns.
    """
    try:
        return _Reader(columns).condition(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        hint = "; equality is written ==" if "=" in text and "==" not in text else ""
        raise InputError(
            f"--where {text!r} cannot be read: {why}{hint}; write it like \"clip_score > 25 and scheduler == 'DDIM'\""
        ) from None


class _Reader:
    """Turns the tree of a text into an expression.

    Raises:
        ValueError: by every method, where a part is none that conditions are made of.
    """

    def __init__(self, columns: Collection[str]) -> None:
        self._columns = columns

    def condition(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=ast.And(), values=[first, *others]):
                found = self.condition(first)
                for other in others:
                    found &= self.condition(other)
                return found
            case ast.BoolOp(op=ast.Or(), values=[first, *others]):
                found = self.condition(first)
                for other in others:
                    found |= self.condition(other)
                return found
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return ~self.condition(inner)
            case ast.Name():
                return self._field(node)
            case ast.Compare(left=left, ops=ops, comparators=others):
                operands = [left, *others]
                found = self._compared(operands[0], ops[0], operands[1])
                for place, sign in enumerate(ops[1:], 1):
                    found &= self._compared(operands[place], sign, operands[place + 1])
                return found
            case _:
                raise ValueError(f"{ast.unparse(node)} is no comparison")

    def _compared(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(sign, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise ValueError("`is` goes with None alone")
            absent = self._field(left).is_null()
            return absent if isinstance(sign, ast.Is) else ~absent
        if isinstance(sign, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Tuple, ast.List)) or not right.elts:
                raise ValueError("`in` goes with a list in brackets")
            found = self._field(left).isin([_value(one) for one in right.elts])
            return found if isinstance(sign, ast.In) else ~found & self._field(left).is_valid()
        if not isinstance(left, ast.Name) and not isinstance(right, ast.Name):
            raise ValueError(f"{ast.unparse(left)} and {ast.unparse(right)} are no columns")
        return _COMPARISONS[type(sign)](self._operand(left), self._operand(right))

    def _operand(self, node: ast.expr) -> pc.Expression:
        return self._field(node) if isinstance(node, ast.Name) else pc.scalar(_value(node))

    def _field(self, node: ast.expr) -> pc.Expression:
        if not isinstance(node, ast.Name):
            raise ValueError(f"{ast.unparse(node)} is no column")
        if node.id not in self._columns:
            near = get_close_matches(node.id, self._columns, n=1)
            metric = next((metric.name for metric in METRICS.values() if node.id in metric.columns), None)
            hint = f", but {near[0]!r}" if near else ""
            hint = f" yet; batchgen score --metric {metric} makes it" if metric else hint
            raise ValueError(f"there is no column {node.id!r}{hint}")
        return pc.field(node.id)


def _value(node: ast.expr) -> str | float | bool:
    """A text, a number, true or false."""
    sign = 1
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        sign, node = (-sign if isinstance(node.op, ast.USub) else sign), node.operand
    match node:
        case ast.Constant(value=bool() | str() as value) if sign == 1:
            return value
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return sign * value
    raise ValueError(f"{ast.unparse(node)} is no text and no number")
