"""Line plots as SVG text: no library, no script, readable on light and on dark.

Colours come from the page's CSS variables (--ink, --muted, --grid, --s0 ...); `standalone` puts
them into the picture itself, for a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from unclip_sample.evaluation.results import Plot, Series

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 48
NUM_COLOURS = 7
LEGEND_LINE = 18
COLOURS = """
:root { --ink: #1f2430; --muted: #6b7280; --grid: #e5e7eb; --paper: #ffffff;
  --s0: #2563c9; --s1: #c2510a; --s2: #0f8a5f; --s3: #8b3fb8; --s4: #b0870b;
  --s5: #c23a6b; --s6: #4b5563; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --muted: #9aa3b2; --grid: #313744; --paper: #171a21;
    --s0: #7db0ff; --s1: #ffa366; --s2: #57d3a3; --s3: #cf9bf2; --s4: #e4c55a;
    --s5: #ff8fb3; --s6: #b8c0cc; } }
"""
STYLE = """
svg.plot text { font: 12px system-ui, "Segoe UI", sans-serif; fill: var(--muted); }
svg.plot text.axis { fill: var(--ink); }
svg.plot .grid { stroke: var(--grid); stroke-width: 1; }
svg.plot .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.plot .band { opacity: 0.16; stroke: none; }
svg.plot .level { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 5 4; }
svg.plot .dot { stroke: var(--paper); stroke-width: 1.2; }
"""


def svg_of(plot: Plot, standalone: bool = False) -> str:
    """The plot as an <svg> element; standalone ones carry their colours and a background."""
    box = _Box(plot)
    parts = [*box.axes()]
    for number, series in enumerate(plot.series):
        parts += box.band(series, number)
    for name, height in plot.levels:
        parts += box.level(name, height)
    for number, series in enumerate(plot.series):
        parts += box.line(series, number)
    parts += box.legend()
    head, size = "", f'viewBox="0 0 {WIDTH} {box.height}"'
    if standalone:
        size += f' width="{WIDTH}" height="{box.height}" xmlns="http://www.w3.org/2000/svg"'
        head = f"<style>{COLOURS}{STYLE}</style>"
        head += '<rect width="100%" height="100%" fill="var(--paper)"/>'
    title = f"<title>{escape(plot.title)}</title>"
    return f'<svg class="plot" role="img" {size}>{title}{head}{"".join(parts)}</svg>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span low..high, the outermost at or beyond the ends."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, count - 1)
    size = 10 ** math.floor(math.log10(raw))
    step = min(
        (m * size for m in (1, 2, 2.5, 5, 10)), key=lambda s: (s < raw * 0.999, abs(s - raw))
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


class _Box:
    """The frame of a plot: where its values lie in pixels."""

    def __init__(self, plot: Plot):
        self.plot = plot
        xs = [self._x_value(x) for series in plot.series for x in series.x]
        ys = [y for series in plot.series for y in (*series.y, *series.low, *series.high)]
        ys += [height for _, height in plot.levels]
        self.y_ticks = ticks(min(ys), max(ys))
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]
        pad = (max(xs) - min(xs) or 1.0) * 0.05
        self.x_low, self.x_high = min(xs) - pad, max(xs) + pad
        named = len(plot.series) if len(plot.series) > 1 else 0
        self.height = HEIGHT + LEGEND_LINE * named

    def _x_value(self, x: float) -> float:
        return math.log10(x) if self.plot.log_x else x

    def x(self, value: float) -> float:
        """Pixels from the left."""
        share = (self._x_value(value) - self.x_low) / (self.x_high - self.x_low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    def axes(self) -> list[str]:
        """Grid, ticks and names of both axes."""
        parts = []
        step = self.y_ticks[1] - self.y_ticks[0]
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 8, y + 4, self._y_label(value, step), "end"))
        for value in self._x_ticks():
            label = f"{value:g}"
            parts.append(_text(self.x(value), HEIGHT - BOTTOM + 18, label, "middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(_text(middle, HEIGHT - 8, self.plot.x_label, "middle", "axis"))
        across = (TOP + HEIGHT - BOTTOM) / 2
        turned = f'transform="rotate(-90 14 {across})"'
        parts.append(_text(14, across, self.plot.y_label, "middle", "axis", turned))
        return parts

    def _y_label(self, value: float, step: float) -> str:
        if self.plot.share:
            return f"{100 * value:.0f} %"
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += abs(step * 10**digits - round(step * 10**digits)) > 1e-6
        return f"{value:.{digits}f}"

    def _x_ticks(self) -> list[float]:
        """The values themselves where they are few and apart, else round numbers."""
        values = sorted({x for series in self.plot.series for x in series.x})
        places = [self.x(value) for value in values]
        gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
        if len(values) <= 10 and min(gaps, default=99) >= 22:
            return values
        if self.plot.log_x:
            return _thinned(values, places)
        return [v for v in ticks(values[0], values[-1]) if self.x_low <= v <= self.x_high]

    def band(self, series: Series, number: int) -> list[str]:
        """The interval around a line."""
        if not series.low or len(series.x) < 2:
            return []
        top = [f"{self.x(x)} {self.y(y)}" for x, y in zip(series.x, series.high, strict=True)]
        low = [f"{self.x(x)} {self.y(y)}" for x, y in zip(series.x, series.low, strict=True)]
        path = "M" + "L".join([*top, *reversed(low)]) + "Z"
        return [f'<path class="band" fill="{_colour(number)}" d="{path}"/>']

    def line(self, series: Series, number: int) -> list[str]:
        """A line, its points and their labels."""
        points = [(self.x(x), self.y(y)) for x, y in zip(series.x, series.y, strict=True)]
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        parts = [f'<path class="line" stroke="{_colour(number)}" d="{path}"/>']
        for (x, y), value in zip(points, series.y, strict=True):
            shown = f"{100 * value:.0f} %" if self.plot.share else f"{value:.4g}"
            title = f"<title>{escape(series.name)}: {shown}</title>"
            dot = f'class="dot" cx="{x}" cy="{y}" r="4" fill="{_colour(number)}"'
            parts.append(f"<circle {dot}>{title}</circle>")
        for (x, y), label in zip(points, series.labels, strict=False):
            parts.append(_text(x + 7, y - 7, label, "start"))
        return parts

    def level(self, name: str, height: float) -> list[str]:
        """A dashed line across, with its name."""
        y = self.y(height)
        label = _text(WIDTH - RIGHT - 2, y - 5, name, "end")
        return [f'<path class="level" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>', label]

    def legend(self) -> list[str]:
        """Names of the lines, below the plot, where there are several."""
        if len(self.plot.series) < 2:
            return []
        parts = []
        for number, series in enumerate(self.plot.series):
            y = HEIGHT + 8 + LEGEND_LINE * number
            line = f'<path class="line" stroke="{_colour(number)}" d="M{LEFT} {y}h20"/>'
            parts += [line, _text(LEFT + 28, y + 4, series.name, "start", "axis")]
        return parts


def _thinned(values: Sequence[float], places: Sequence[float]) -> list[float]:
    """Values whose places are far enough from the last one kept."""
    kept: list[tuple[float, float]] = []
    for value, place in zip(values, places, strict=True):
        if not kept or place - kept[-1][1] >= 22:
            kept.append((value, place))
    return [value for value, _ in kept]


def _colour(number: int) -> str:
    return f"var(--s{number % NUM_COLOURS})"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", extra: str = "") -> str:
    attributes = f'x="{x}" y="{y}" text-anchor="{anchor}" {extra}'
    return f'<text class="{kind}" {attributes.rstrip()}>{escape(text)}</text>'
