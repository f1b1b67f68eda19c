"""Draw the statuses of a run and the moves between them, as the code has them."""

from __future__ import annotations

from flask_sequence.status import MOVES, Status

PLACES = {
    Status.WAITING: (200, 190),
    Status.RUNNING: (460, 190),
    Status.FINISHED: (740, 190),
    Status.FAILED: (460, 50),
    Status.BLOCKED: (110, 340),
    Status.PAUSED: (290, 340),
    Status.CANCELLED: (540, 340),
}
"""The middle of each box."""

ARROWS = {
    (Status.WAITING, Status.RUNNING): "M260,182H398",
    (Status.RUNNING, Status.WAITING): "M400,200H262",
    (Status.RUNNING, Status.RUNNING): "M490,170C500,120 570,140 521,176",
    (Status.RUNNING, Status.FINISHED): "M520,192H678",
    (Status.RUNNING, Status.FAILED): "M450,170V72",
    (Status.FAILED, Status.WAITING): "M400,50C270,50 210,100 204,168",
    (Status.WAITING, Status.BLOCKED): "M168,210L117,318",
    (Status.BLOCKED, Status.WAITING): "M143,320L193,212",
    (Status.WAITING, Status.PAUSED): "M222,210L272,318",
    (Status.PAUSED, Status.WAITING): "M298,320L247,212",
    (Status.WAITING, Status.CANCELLED): "M256,210C330,270 420,290 488,319",
    (Status.RUNNING, Status.CANCELLED): "M475,210L526,318",
    (Status.FAILED, Status.CANCELLED): "M520,50C920,40 930,345 602,342",
    (Status.PAUSED, Status.CANCELLED): "M350,344H478",
    (Status.BLOCKED, Status.CANCELLED): "M150,360C240,405 420,405 508,362",
}
"""The way of each arrow."""

WORDS = (
    (330, 174, "middle", "claimed by a process"),
    (330, 218, "middle", "next step, retry, crash"),
    (552, 140, "start", "checkpoint, next step of a burst"),
    (600, 210, "middle", "last step, self.finish()"),
    (442, 122, "end", "no retry left, self.fail()"),
    (262, 66, "end", "run.retry()"),
    (128, 258, "end", "no worker"),
    (128, 274, "end", "knows its step"),
    (612, 332, "start", "run.cancel()"),
    (100, 182, "middle", "start()"),
)

STYLE = """
.paper { fill: #ffffff; stroke: #d5dbe1 } .box { fill: #eef6f7; stroke: #1d6a72; stroke-width: 1.5 }
.final { fill: #e7edf2; stroke: #52606d } text { fill: #1f2933 } .word { fill: #52606d }
.arrow { fill: none; stroke: #52606d; stroke-width: 1.5 } .head { fill: #52606d }
@media (prefers-color-scheme: dark) {
  .paper { fill: #161b22; stroke: #30363d } .box { fill: #12343a; stroke: #6cc5cf }
  .final { fill: #21262d; stroke: #9aa5b1 } text { fill: #e6edf3 } .word { fill: #9aa5b1 }
  .arrow { stroke: #9aa5b1 } .head { fill: #9aa5b1 }
}
"""


def drawing() -> str:
    """Draw them as SVG, in the colours that the reader's screen prefers.

    :raises AssertionError: If an arrow stands for no move, or a move has no arrow.
    """
    assert ARROWS.keys() == {(a, b) for a, moves in MOVES.items() for b in moves}
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 410" width="860" height="410"'
        ' font-family="system-ui, sans-serif" role="img">',
        f"<title>The statuses of a run</title><style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path class="head" d="M0,0L8,4L0,8z"/></marker>',
        '<rect class="paper" x=".5" y=".5" width="859" height="409" rx="8"/>',
        '<circle class="head" cx="52" cy="190" r="6"/>',
    ]
    for way in ("M60,190H138", *ARROWS.values()):
        parts.append(f'<path class="arrow" d="{way}" marker-end="url(#head)"/>')
    for status, (x, y) in PLACES.items():
        kind = "final" if status.final else "box"
        parts += [
            f'<rect class="{kind}" x="{x - 60}" y="{y - 20}" width="120" height="40" rx="6"/>',
            f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-size="15">{status}</text>',
        ]
    for x, y, anchor, words in WORDS:
        parts.append(
            f'<text class="word" x="{x}" y="{y}" text-anchor="{anchor}" font-size="12">{words}'
            "</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
