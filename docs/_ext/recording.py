"""Record bin/demo in a terminal, and draw what it shows as a moving SVG."""

from __future__ import annotations

import html
import itertools
import os
import pty
import re
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[2]
DRAWING = ROOT / "docs" / "images" / "demo.svg"
COLUMNS, ROWS = 90, 22
LONGEST_PAUSE = 0.4
"""The most seconds for which the recording may stand still."""
SECONDS = 12.0
"""How long the recording moves."""
HOLD_SECONDS = 5.0
"""How long its end is shown."""
STYLE = """
text { fill: #d7dee6; white-space: pre } .good { fill: #5eead4 } .bad { fill: #fca5a5 }
.soft { fill: #94a3b8 } .bar { fill: #2dd4bf }
.s { visibility: hidden; animation-duration: %.2fs; animation-iteration-count: infinite;
     animation-timing-function: step-end }
.last { visibility: visible }
@media (prefers-reduced-motion: reduce) { .s { animation: none } }
"""
COLOURS = (
    (re.compile(r"^  ok "), "good"),
    (re.compile(r"^  (kill -9|WRONG)"), "bad"),
    (re.compile(r"^  [█░]"), "bar"),
    (re.compile(r"^(A new|  \$|  in )"), "soft"),
)

Screen = tuple[str, ...]


def record() -> list[tuple[float, Screen]]:
    """Run the demo in a terminal, and give its screens, each with the second it was there from."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    own, other = pty.openpty()
    process = subprocess.Popen(
        [str(ROOT / "bin" / "demo")],
        stdin=subprocess.DEVNULL,
        stdout=other,
        stderr=other,
        env={**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm"},
    )
    os.close(other)
    began = time.monotonic()
    screens: list[tuple[float, Screen]] = []
    while True:
        try:
            written = os.read(own, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not written:
            break
        stream.feed(written)
        shown = tuple(line.rstrip() for line in screen.display)
        if not screens or screens[-1][1] != shown:
            screens.append((time.monotonic() - began, shown))
    if process.wait():
        sys.exit("bin/demo did not go well")
    return screens


def hastened(screens: t.Sequence[tuple[float, Screen]]) -> list[tuple[float, Screen]]:
    """Shorten the pauses, then all of it to the length that is wanted."""
    at, times = 0.0, [0.0]
    for (earlier, _), (later, _) in itertools.pairwise(screens):
        at += min(later - earlier, LONGEST_PAUSE)
        times.append(at)
    part = min(1.0, SECONDS / at)
    return [(part * moment, shown) for moment, (_, shown) in zip(times, screens, strict=True)]


def drawn(screens: t.Sequence[tuple[float, Screen]]) -> str:
    """Draw them, one text for each time in which a line stays as it is."""
    total = screens[-1][0] + HOLD_SECONDS
    parts, frames = [], []
    for row in range(ROWS):
        since, text = 0.0, ""
        for moment, shown in [*screens, (total, ("",) * ROWS)]:
            if shown[row] == text:
                continue
            if text:
                name = f"k{len(parts)}"
                first, last = 100 * since / total, 100 * moment / total
                until = "" if moment == total else f"{last:.2f}%{{visibility:hidden}}"
                frames.append(
                    f"@keyframes {name}{{0%{{visibility:hidden}}{first:.2f}%"
                    f"{{visibility:visible}}{until}}}"
                )
                parts.append(_line(row, text, name, is_last=moment == total))
            since, text = moment, shown[row]
    width, height = COLUMNS * 8 + 40, ROWS * 19 + 62
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-size="13" '
            'font-family="ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace">',
            "<title>bin/demo: the worker is killed, and every message arrives once</title>",
            f"<style>{STYLE % total}{''.join(frames)}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#10161d"/>',
            *(
                f'<circle cx="{22 + 18 * number}" cy="20" r="5.5" fill="{colour}"/>'
                for number, colour in enumerate(("#f87171", "#fbbf24", "#4ade80"))
            ),
            '<text x="50%" y="25" text-anchor="middle" class="soft">bin/demo</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _line(row: int, text: str, name: str, *, is_last: bool) -> str:
    colour = next((kind for pattern, kind in COLOURS if pattern.search(text)), "")
    classes = " ".join(filter(None, ("s", "last" if is_last else "", colour)))
    return (
        f'<text class="{classes}" style="animation-name:{name}" x="20" y="{58 + 19 * row}" '
        f'textLength="{8 * len(text)}" xml:space="preserve">{html.escape(text, quote=False)}</text>'
    )


if __name__ == "__main__":
    DRAWING.write_text(drawn(hastened(record())), "utf-8")
