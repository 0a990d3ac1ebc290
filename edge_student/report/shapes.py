"""What a figure of the page is made of: shapes with numbers, which the template writes down as SVG. Colours are the template's."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 920.0
LEFT = 132.0
"""Where the labels of the rows end, in pixels."""

_LETTER = 7.0  # a letter of the labels, in pixels, rounded up


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One SVG element. `look` is its CSS class, `text` what is written, `tip` what is shown to who points at it."""

    tag: str
    at: tuple[tuple[str, str], ...]
    look: str
    text: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing of WIDTH x `height`, with a title and a description for who cannot see it. `name` is unique on the page."""

    name: str
    title: str
    description: str
    height: float
    shapes: tuple[Shape, ...]
    width: float = WIDTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to pixels; logarithmic where `is_log`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` lies. It must be positive on a logarithmic scale."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Round values between both ends, `most` of them or fewer."""
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
    """A rectangle from its upper left corner; what is narrower than can be seen is drawn as wide as can be."""
    at = (("x", px(x)), ("y", px(y)), ("width", px(max(width, 0.3))), ("height", px(height)))
    return Shape(tag="rect", at=at, look=look, tip=tip)


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> Shape:
    """A straight line."""
    return Shape(tag="line", at=(("x1", px(x1)), ("y1", px(y1)), ("x2", px(x2)), ("y2", px(y2))), look=look)


def circle(x: float, y: float, radius: float, look: str, tip: str = "") -> Shape:
    """A dot."""
    return Shape(tag="circle", at=(("cx", px(x)), ("cy", px(y)), ("r", px(radius))), look=look, tip=tip)


def text(x: float, y: float, words: str, look: str = "label", anchor: str = "start") -> Shape:
    """Words whose baseline begins, has its middle or ends (`anchor`: start, middle, end) at x, y."""
    return Shape(tag="text", at=(("x", px(x)), ("y", px(y)), ("text-anchor", anchor)), look=look, text=words)


def polyline(points: Iterable[tuple[float, float]], look: str) -> Shape:
    """A line through points."""
    return Shape(tag="polyline", at=(("points", " ".join(f"{px(x)},{px(y)}" for x, y in points)),), look=look)


def blocks(boxes: Sequence[tuple[float, float, float, float]], look: str) -> Shape:
    """Many rectangles (x, y, width, height) in one element, which keeps a page of thousands of them small."""
    path = "".join(f"M{px(x)} {px(y)}h{px(max(width, 0.3))}v{px(height)}h-{px(max(width, 0.3))}z" for x, y, width, height in boxes)
    return Shape(tag="path", at=(("d", path),), look=look)


def axis(scale: Scale, y: float, top: float, unit: str) -> list[Shape]:
    """Thin lines from `top` to y at round values of a horizontal scale, the values below them, and their unit."""
    shapes = []
    for tick in scale.ticks():
        x = scale(tick)
        shapes += [line(x, top, x, y, "grid"), text(x, y + 16, f"{tick:.10g}", "tick", "middle")]
    return [*shapes, text((scale.start + scale.end) / 2, y + 34, unit, "tick", "middle")]


def row_label(y: float, words: str) -> Shape:
    """The name of a row, right before the plot; one too long for its place is cut, and stands whole in its tip."""
    most = int((LEFT - 12) / _LETTER)
    shown = words if len(words) <= most else words[: most - 2] + ".."
    at = (("x", px(LEFT - 12)), ("y", px(y)), ("text-anchor", "end"))
    return Shape(tag="text", at=at, look="label", text=shown, tip="" if shown == words else words)


def px(value: float) -> str:
    """A number of pixels, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
