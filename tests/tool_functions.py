"""Functions that are tools, for golden/make_tools.py and test_tools.py: every kind of hint and docstring."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal, Optional, Union


class Unit(enum.Enum):
    """Temperatures."""

    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


def multiply(x: float, y: float) -> float:
    """
    Multiply two numbers.

    Args:
        x: The first number
        y: The second number

    Returns:
        Their product
    """
    return x * y


def weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius", days: int = 1) -> str:
    """Get the weather of a city,
    today and later.

    Some more words about it.

    Args:
        city (str): Name of the city,
            in English; as in: "Paris"
        unit: Of the temperature
        days (int, optional): How many

    Raises:
        ValueError: never
    """
    return f"{city}: {20 * days} {unit}"


def drink(beverage: str, sizes: list[int], extra: dict[str, float]) -> dict[str, Any]:
    """Order a drink.

    Args:
        beverage: What to drink (choices: ["tea", "coffee", " milk "])
        sizes: All sizes
        extra: Grams of what goes in
    """
    return {"beverage": beverage, "grams": sum(extra.values()), "sizes": sizes}


def kinds(
    a: Optional[int],  # noqa: UP045
    b: Union[int, str],  # noqa: UP007
    c: int | str | None,
    d: list,  # type: ignore[type-arg]
    e: dict,  # type: ignore[type-arg]
    f: tuple[int, str],
    g: list[list[bool]] | None,
    h: Unit,
    i: Literal[1, "x", None],
    j: Any,
    k: Union[list[int], str] = "k",  # noqa: UP007
    l: float | None = None,  # noqa: E741
    m: list[Unit] | dict[str, int] = (),  # type: ignore[assignment]
    n: Optional[Literal["q"]] = None,  # noqa: UP045
) -> None:
    """Take everything.

    Args:
        a: A
        b: B
        c: C
        d: D
        e: E
        f: F
        g: G
        h: H
        i: I
        j: J
        k: K
        l: L
        m: M
        n: N
    """


def nothing() -> Callable[[], int]:
    """Do nothing."""
    return lambda: 0


class Service:
    """Something with state."""

    def look_up(self, key: str) -> list[str]:
        """Look something up.

        Args:
            key: What to look up

        Returns:
            What was found,
            in order.
        """
        return [key]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "multiply": multiply,
    "weather": weather,
    "drink": drink,
    "kinds": kinds,
    "nothing": nothing,
    "bound": Service().look_up,
    "unbound": Service.look_up,
}


def undocumented(x: int) -> int:
    return x


def undescribed(x: int) -> int:
    """Do it.

    Args:
        y: Another
    """
    return x


def unhinted(x) -> int:  # type: ignore[no-untyped-def]
    """Do it.

    Args:
        x: What
    """
    return int(x)


def foreign(x: Service) -> int:
    """Do it.

    Args:
        x: What
    """
    return 0


def endless(x: tuple[int, ...]) -> int:
    """Do it.

    Args:
        x: What
    """
    return 0


def single(x: tuple[int]) -> int:
    """Do it.

    Args:
        x: What
    """
    return 0


def odd(x: Literal[b"bytes"]) -> int:
    """Do it.

    Args:
        x: What
    """
    return 0


#: What `transformers` refuses, too.
REFUSED: tuple[Callable[..., Any], ...] = (undocumented, undescribed, unhinted, foreign, endless, single, odd)
