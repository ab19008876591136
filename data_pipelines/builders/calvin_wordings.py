"""More sentences for CALVIN's 34 tasks than its eleven or so each: wordings of ours, for policies
whose words are learnt from these data alone. With few sentences such a policy knows them by heart.

A pattern holds alternatives in braces: `{push|slide} the block {|gently} left` are four sentences.
They say what CALVIN's own sentences say, in its words and in others' ("press", "shelf"); none of
them is a sentence of the official validation, which `wordings` leaves out whatever the patterns
give.
"""

import itertools
import re
from collections.abc import Iterable

COLOURS, SIDES = ("red", "blue", "pink"), ("left", "right")
TAKE = "{take|grasp|grab|pick up|hold}"
PLACES = {
    "table": ("", " {up|}", " {from|on|off|lying on} the table"),
    "slider": (" {from|in|inside|out of|lying in} the {sliding cabinet|cabinet|slider|shelf}",),
    "drawer": (" {from|in|inside|out of|lying in} the drawer",),
}
WAY = "{{|to the |towards the |all the way to the }}{side}"
BULB = "the {light bulb|bulb|lamp|yellow lamp|yellow light|lightbulb}"
LED = "the {led|led light|green light|green led}"

PATTERNS: dict[str, tuple[str, ...]] = {
    "open_drawer": (
        "{|go }{open|pull open} the drawer{| all the way}",
        "{pull|pull on|use|grasp} the {handle|drawer handle|handle of the drawer} {to|and} open"
        " {the drawer|it}",
        "{pull|draw} {out |}the drawer{| open}",
    ),
    "close_drawer": (
        "{|go }{close|shut|push shut} the drawer{| all the way}",
        "{push|push on|use|grasp} the {handle|drawer handle|handle of the drawer} {to|and}"
        " {close|shut} {the drawer|it}",
        "{push|move} {in |}the drawer{| shut}",
    ),
    "place_in_slider": (
        "{place|put|store|leave|set down|drop} the {|grasped |held }{block|object} {in|into|inside}"
        " the {sliding cabinet|cabinet|slider|shelf}",
    ),
    "place_in_drawer": (
        "{place|put|store|leave|set down|drop} the {|grasped |held }{block|object} {in|into|inside}"
        " the drawer",
    ),
    "push_into_drawer": (
        "{push|slide|sweep|move|shove} the {block|object} {into the drawer|so that it falls into"
        " the drawer|that it falls in the drawer|until it {falls|drops} into the drawer}",
    ),
    "stack_block": (
        "{|go }stack {the|a} {|grasped |held }{block|object}{| on the other| on another block}",
        "stack {|the }blocks {on top of each other|on one another}",
        "{place|put|leave} the {|grasped |held }{block|object} on {|top of }{another|the other}"
        " {block|object}",
    ),
    "unstack_block": (
        "{remove|take off|take down|unstack|lift off} the {top|upper|stacked|topmost}"
        " {block|object}",
        "{remove|take|lift} the {|stacked |upper }block {off|from} the {|top of the }{stack|tower|"
        "other block}",
        "{unstack|take apart|collapse} the {|stacked }blocks",
    ),
    "turn_on_lightbulb": (
        f"{{|go }}turn on {BULB}",
        f"{{use|push|move|slide|toggle|press|flip}} the {{|light }}switch {{|up |upwards }}to"
        f" {{turn on|switch on}} {BULB}",
    ),
    "turn_off_lightbulb": (
        f"{{|go }}turn off {BULB}",
        f"{{use|push|move|slide|toggle|press|flip}} the {{|light }}switch {{|down |downwards }}to"
        f" {{turn off|switch off}} {BULB}",
    ),
    **{
        f"turn_{state}_led": (
            f"{{|go }}turn {state} {LED}",
            f"{{press|push|use|hit|toggle|push down}} the {{|green }}button to {{turn|switch}}"
            f" {state} {LED}",
        )
        for state in ("on", "off")
    },
    **{
        f"move_slider_{side}": (
            "{|go }{move|slide|push|pull} the {sliding door|door|slider|cabinet door} "
            + WAY.format(side=side) + "{| side}",
            f"{TAKE} the door handle {{and|, then}} {{move|slide|push}} {{it|the door}} to the"
            f" {side}",
        )
        for side in SIDES
    },
    **{
        f"rotate_{colour}_block_{side}": (
            f"{TAKE} the {colour} block{{ and|, then}} {{rotate|turn|twist}} it "
            + WAY.format(side=side),
            f"{{|go }}{{rotate|turn|twist}} the {colour} block {{|90 degrees }}"
            + WAY.format(side=side),
            f"{{rotate|turn|twist}} {side} the {colour} block",
        )
        for colour in COLOURS
        for side in SIDES
    },
    **{
        f"push_{colour}_block_{side}": (
            f"{{|go }}{{push|slide|move|shove|sweep}} the {colour} block " + WAY.format(side=side),
            f"{{push|slide|move}} {side} the {colour} block",
        )
        for colour in COLOURS
        for side in SIDES
    },
    **{
        f"lift_{colour}_block_{place}": (
            *(
                f"{{lift|pick up|grasp|grab|take|raise|grasp and lift|lift up}} the {colour}"
                f" block{where}"
                for where in wheres
            ),
            *((f"in the drawer, {TAKE} the {colour} block",) if place == "drawer" else ()),
        )
        for colour in COLOURS
        for place, wheres in PLACES.items()
    },
}  # fmt: skip

INNERMOST = re.compile(r"\{([^{}]*)\}")


def wordings(task: str, held_out: Iterable[str]) -> list[str]:
    """The sentences of a task, each once, without those of `held_out` (in whatever case). Raises
    ValueError for a task that is none of CALVIN's.
    """
    if task not in PATTERNS:
        raise ValueError(f"expected a task of CALVIN's, got {task!r}")
    without = {_plain(text) for text in held_out}
    said = dict.fromkeys(_plain(text) for each in PATTERNS[task] for text in _expanded(each))
    return [text for text in said if text not in without]


def _expanded(pattern: str) -> list[str]:
    """The sentences that a pattern stands for."""
    match = INNERMOST.search(pattern)
    if match is None:
        return [pattern]
    choices = match[1].split("|")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return list(itertools.chain.from_iterable(_expanded(before + c + after) for c in choices))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).replace(" ,", ",")
