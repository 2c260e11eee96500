"""REDCap's filterLogic, as far as exports use it: fields, comparisons, and, or, not, brackets."""

import re
from collections.abc import Callable
from dataclasses import dataclass

Context = dict[str, dict[str, str]]  # event ("" is the row's own): values
Term = Callable[[Context], str]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<field>(?:\[[a-z][a-z0-9_]*\])?\[[a-z][a-z0-9_]*(?:\([^)\]]+\))?\])
    | (?P<number>-?\d+(?:\.\d+)?)
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<sign><=|>=|<>|!=|=|<|>)
    | (?P<bracket>[()])
    | (?P<word>and|or|not)\b
    )""",
    re.VERBOSE | re.IGNORECASE,
)

BRACKETS_MAX = 100


class LogicError(Exception):
    """The logic has a mistake."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed filterLogic."""

    holds: Callable[[Context], bool]


def parse(text: str) -> Condition:
    """Return the condition of a filterLogic. Raises LogicError."""
    tokens: list[tuple[str, str]] = []
    position = 0
    stripped = text.rstrip()
    if text.count("(") > BRACKETS_MAX or text.lower().count("not") > BRACKETS_MAX:
        raise LogicError("it is nested too deep")
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if not match or match.lastgroup is None:
            raise LogicError(f"syntax error at character {position}")
        tokens.append(
            (match.lastgroup, match[match.lastgroup].lower() if match.lastgroup == "word" else match[match.lastgroup])
        )
        position = match.end()
    parser = _Parser(tokens)
    holds = parser.either()
    if parser.tokens:
        raise LogicError(f"{parser.tokens[0][1]!r} is out of place")
    return Condition(holds)


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens

    def _take(self, kind: str, text: str | None = None) -> str | None:
        if self.tokens and self.tokens[0][0] == kind and text in (None, self.tokens[0][1]):
            return self.tokens.pop(0)[1]
        return None

    def either(self) -> Callable[[Context], bool]:
        parts = [self._both()]
        while self._take("word", "or"):
            parts.append(self._both())
        return lambda row: any(part(row) for part in parts)

    def _both(self) -> Callable[[Context], bool]:
        parts = [self._one()]
        while self._take("word", "and"):
            parts.append(self._one())
        return lambda row: all(part(row) for part in parts)

    def _one(self) -> Callable[[Context], bool]:
        if self._take("word", "not"):
            inner = self._one()
            return lambda row: not inner(row)
        if self._take("bracket", "("):
            inner = self.either()
            if not self._take("bracket", ")"):
                raise LogicError("a bracket is not closed")
            return inner
        left = self._term()
        sign = self._take("sign")
        if sign is None:
            raise LogicError("a comparison is missing")
        right = self._term()
        return lambda row: _compare(left(row), sign, right(row))

    def _term(self) -> Term:
        if name := self._take("field"):
            parts = re.findall(r"\[([^\]]+)\]", name)
            event, variable = (parts[0], parts[1]) if len(parts) == 2 else ("", parts[0])
            variable = re.sub(r"\(([^)]+)\)", lambda code: "___" + code[1].lower(), variable)
            return lambda row: row.get(event, {}).get(variable, "")
        if (number := self._take("number")) is not None:
            return lambda row: number
        if (text := self._take("text")) is not None:
            return lambda row: text[1:-1]
        raise LogicError("a field, a number or a text is missing")


def _compare(left: str, sign: str, right: str) -> bool:
    if sign == "=":
        return left == right or _numbers(left, right, lambda a, b: a == b)
    if sign in ("<>", "!="):
        return not _compare(left, "=", right)
    if left == "" or right == "":
        return False
    how: dict[str, Callable[[object, object], bool]] = {
        "<": lambda a, b: a < b,  # type: ignore[operator]
        ">": lambda a, b: a > b,  # type: ignore[operator]
        "<=": lambda a, b: a <= b,  # type: ignore[operator]
        ">=": lambda a, b: a >= b,  # type: ignore[operator]
    }
    numbers = [_number(left), _number(right)]
    if None not in numbers:
        return how[sign](*numbers)
    if numbers == [None, None]:
        return how[sign](left, right)  # dates and texts
    return False  # a missing-data code is neither more nor less than a number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(left: str, right: str, how: Callable[[float, float], bool]) -> bool:
    one, other = _number(left), _number(right)
    return one is not None and other is not None and how(one, other)
