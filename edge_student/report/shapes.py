"""Build the figures of the page from geometric shapes. The template renders them as SVG and sets the colours."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 920.0
LEFT = 132.0
"""Right end of the row labels and left end of the plot, in pixels."""

_LETTER = 7.0  # width of one letter of a label in pixels, rounded up
_LABEL_END = LEFT - 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One SVG element. `look` is its CSS class, `text` its content, `tip` its tooltip."""

    tag: str
    at: tuple[tuple[str, str], ...]
    look: str
    text: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing of WIDTH x `height`. Screen readers read the title and the description. `name` is unique on the page."""

    name: str
    title: str
    description: str
    height: float
    shapes: tuple[Shape, ...]
    width: float = WIDTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Map values to pixels, logarithmically if `is_log`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`, which must be positive on a logarithmic scale."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Return at most `most` round values between both ends."""
        if self.is_log:
            return _log_ticks(self.low, self.high, most)
        step = _round_up((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) <= most:
            break
    return ticks


def rect(x: float, y: float, width: float, height: float, look: str, tip: str = "") -> Shape:
    """Draw a rectangle from its upper left corner. The minimum width of 0.3 pixels keeps it visible."""
    at = (("x", px(x)), ("y", px(y)), ("width", px(max(width, 0.3))), ("height", px(height)))
    return Shape(tag="rect", at=at, look=look, tip=tip)


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> Shape:
    """Draw a straight line."""
    return Shape(tag="line", at=(("x1", px(x1)), ("y1", px(y1)), ("x2", px(x2)), ("y2", px(y2))), look=look)


def circle(x: float, y: float, radius: float, look: str, tip: str = "") -> Shape:
    """Draw a dot."""
    return Shape(tag="circle", at=(("cx", px(x)), ("cy", px(y)), ("r", px(radius))), look=look, tip=tip)


def text(x: float, y: float, words: str, look: str = "label", anchor: str = "start") -> Shape:
    """Draw text with its start, middle or end (`anchor`: start, middle, end) at x and its baseline at y."""
    return Shape(tag="text", at=(("x", px(x)), ("y", px(y)), ("text-anchor", anchor)), look=look, text=words)


def polyline(points: Iterable[tuple[float, float]], look: str) -> Shape:
    """Draw a line through points."""
    return Shape(tag="polyline", at=(("points", " ".join(f"{px(x)},{px(y)}" for x, y in points)),), look=look)


def blocks(boxes: Sequence[tuple[float, float, float, float]], look: str) -> Shape:
    """Draw many rectangles (x, y, width, height) as one element. One element keeps a page with thousands of them small."""
    path = "".join(f"M{px(x)} {px(y)}h{px(max(width, 0.3))}v{px(height)}h-{px(max(width, 0.3))}z" for x, y, width, height in boxes)
    return Shape(tag="path", at=(("d", path),), look=look)


def axis(scale: Scale, y: float, top: float, unit: str) -> list[Shape]:
    """Draw a horizontal axis at y: grid lines up to `top` at round values, the values, and their unit."""
    shapes = []
    for tick in scale.ticks():
        x = scale(tick)
        shapes += [line(x, top, x, y, "grid"), text(x, y + 16, f"{tick:.10g}", "tick", "middle")]
    return [*shapes, text((scale.start + scale.end) / 2, y + 34, unit, "tick", "middle")]


def row_label(y: float, name: str) -> Shape:
    """Draw the name of a row left of the plot. A long name is compressed to the width, never cut; its tooltip repeats it."""
    at = (("x", px(_LABEL_END)), ("y", px(y)), ("text-anchor", "end"))
    if len(name) * _LETTER <= _LABEL_END:
        return Shape(tag="text", at=at, look="label", text=name)
    compressed = (*at, ("textLength", px(_LABEL_END)), ("lengthAdjust", "spacingAndGlyphs"))
    return Shape(tag="text", at=compressed, look="label", text=name, tip=name)


def px(value: float) -> str:
    """Format a number of pixels, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
