"""Functions that Ray workers import in tests of `raysys.dist`."""

from raysys.errors import DataError


def refuse_three(number: int) -> int:
    """The square; a user's error at 3."""
    if number == 3:
        raise DataError("row 3 of the list is a three")
    return number * number


def swap(numbers: tuple[int, int]) -> tuple[int, int]:
    """Second first, to see that tuples stay tuples."""
    return numbers[1], numbers[0]
