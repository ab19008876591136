"""What a robot is told in Meta-World, by task: the tasks have names there and no sentences.

Of each task four sentences that training has, and two kept from it. These are put together from the
words of the four, so that a tokenizer made of training's sentences knows them.
"""

from typing import NamedTuple

# The ten tasks of MT10, in its order.
MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)


class Wordings(NamedTuple):
    """Sentences for a task: those of training, and those kept from it."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


# Sentences with ; between them; behind | those that are held out.
_SAID = {
    "assembly": """put the ring over the peg; pick up the ring and hang it on the peg;
        lift the ring onto the peg; hang the ring over the peg
        | pick up the ring and put it onto the peg; hang the ring on the peg""",
    "basketball": """throw the ball into the basket; put the ball through the hoop;
        pick up the ball and drop it into the hoop; drop the ball through the basket
        | pick up the ball and put it into the basket; drop the ball into the hoop""",
    "bin-picking": """move the block to the other bin; put the block into the other bin;
        pick the block up and put it in the other bin; take the block out of its bin
        | pick the block up and move it to the other bin; take the block into the other bin""",
    "box-close": """pick up the lid and close the box; close the box with its lid;
        put the lid on the box and close it; lift the lid onto the box
        | pick up the lid and close the box with it; lift the lid and close the box""",
    "button-press": """press the button in; push the button on the front of the box;
        press the button on the box; push in the button
        | press in the button on the front of the box; push the button in""",
    "button-press-topdown": """press the button from above; push the button down;
        press down the button on top of the box; push down on the button from above
        | press the button down from above; push the button on top of the box""",
    "button-press-topdown-wall": """press the button behind the wall from above;
        reach over the wall and push the button down; push down the button behind the wall;
        go over the wall and press the button
        | reach over the wall and press the button; push the button behind the wall down""",
    "button-press-wall": """press in the button behind the wall;
        go round the wall and push the button in; push the button behind the wall;
        reach round the wall and press the button
        | go round the wall and press in the button; press the button behind the wall""",
    "coffee-button": """press the button of the coffee machine; start the coffee machine;
        push the button on the coffee machine; start the coffee with the button
        | start the coffee machine with the button; press the button on the coffee machine""",
    "coffee-pull": """pull the mug away from the coffee machine; take the mug from the machine;
        move the mug away from the coffee machine; pull the mug to the green point
        | take the mug away from the coffee machine; move the mug to the green point""",
    "coffee-push": """push the mug under the coffee machine; move the mug to the machine;
        push the mug to the green point; put the mug under the coffee machine
        | move the mug under the coffee machine; push the mug to the machine""",
    "dial-turn": """turn the dial; rotate the dial round; turn the dial by half a turn;
        rotate the knob of the dial
        | rotate the dial by half a turn; turn the knob round""",
    "disassemble": """take the ring off the peg; lift the ring off the peg;
        pick up the ring and take it away from the peg; remove the ring from the peg
        | lift the ring away from the peg; pick up the ring and take it off the peg""",
    "door-close": """close the door; push the door shut; shut the door of the box;
        push the door until it is closed
        | close the door of the box; push the door of the box shut""",
    "door-lock": """lock the door; turn the lock down; rotate the lock until the door is locked;
        push the lock of the door down
        | turn the lock of the door down; rotate the lock down""",
    "door-open": """open the door; pull the door open; open the door of the box;
        pull the door by the handle
        | pull the door of the box open; open the door of the box by the handle""",
    "door-unlock": """unlock the door; turn the lock to the side; rotate the lock until the door is
        unlocked; push the lock of the door to the side
        | turn the lock of the door to the side; rotate the lock to the side""",
    "hand-insert": """put the block into the hole; insert the hand with the block into the hole;
        move the block down into the hole; take the block to the hole and put it in
        | take the block and put it into the hole; insert the block into the hole""",
    "drawer-close": """close the drawer; push the drawer in; shut the drawer;
        push the drawer until it is closed
        | push the drawer shut; close the drawer until it is in""",
    "drawer-open": """open the drawer; pull the drawer out; pull the drawer open by its handle;
        pull the handle of the drawer
        | open the drawer by its handle; pull out the drawer by the handle""",
    "faucet-open": """open the faucet; turn the faucet on; push the handle of the faucet to open it;
        rotate the faucet until it is open
        | turn the handle of the faucet to open it; rotate the faucet on""",
    "faucet-close": """close the faucet; turn the faucet off; push the handle of the faucet to close
        it; rotate the faucet until it is closed
        | turn the handle of the faucet to close it; rotate the faucet off""",
    "hammer": """hammer the nail in; hit the nail with the hammer;
        pick up the hammer and drive in the nail; drive the nail into the wall with the hammer
        | pick up the hammer and hit the nail; hammer the nail into the wall""",
    "handle-press-side": """press the handle down from the side; push down the handle at the side;
        press down the handle; push the handle down from its side
        | press the handle at the side down; push down the handle from the side""",
    "handle-press": """press the handle down; push down the handle; press down on the handle;
        push the handle until it is down
        | push down on the handle; press the handle until it is down""",
    "handle-pull-side": """pull the handle up from the side; lift the handle at the side;
        pull up the handle; lift the handle up from its side
        | pull the handle at the side up; lift up the handle from the side""",
    "handle-pull": """pull the handle up; lift the handle; lift the handle until it is up;
        pull up on the handle
        | lift up the handle; pull the handle until it is up""",
    "lever-pull": """pull the lever up; lift the lever; turn the lever until it points up;
        pull up on the lever
        | lift the lever up; pull the lever until it points up""",
    "peg-insert-side": """insert the peg into the hole; put the peg into the hole in the box;
        pick up the peg and push it into the box; push the peg into the side of the box
        | pick up the peg and insert it into the hole; put the peg into the side of the box""",
    "pick-place-wall": """carry the puck over the wall to the blue ball;
        pick up the puck and take it over the wall; lift the puck over the wall to the ball;
        take the puck past the wall to the blue ball
        | pick up the puck and carry it past the wall; take the puck over the wall to the ball""",
    "pick-out-of-hole": """take the puck out of the hole; pick the puck up from the hole;
        lift the puck out of the hole; pull the puck up and out of its hole
        | pick the puck out of the hole; lift the puck up from its hole""",
    "reach": """reach for the red ball; move the hand to the ball; go to the red ball;
        touch the red ball with the hand
        | move the hand to the red ball; reach for the ball with the hand""",
    "push-back": """push the puck back to the ball; pull the puck back towards you;
        move the puck back to the green ball; push the puck back towards the green ball
        | pull the puck back to the ball; move the puck back towards you""",
    "push": """push the puck to the green ball; slide the puck to the ball;
        move the puck along the table to the ball; push the puck over the table
        | slide the puck along the table; push the puck along the table to the green ball""",
    "pick-place": """pick up the puck and carry it to the blue ball; lift the puck to the ball;
        take the puck up to the blue ball; pick the puck up and hold it at the ball
        | lift the puck and hold it at the blue ball; pick up the puck and take it to the ball""",
    "plate-slide": """slide the plate into the goal; push the plate into the cabinet;
        push the plate forward; slide the plate forward into the cabinet
        | push the plate forward into the goal; slide the plate into the cabinet""",
    "plate-slide-side": """slide the plate sideways into the goal; push the plate to the side;
        push the plate into the cabinet at the side; slide the plate to the cabinet
        | push the plate sideways into the cabinet; slide the plate to the side""",
    "plate-slide-back": """slide the plate back out of the goal; pull the plate back;
        pull the plate out of the cabinet; slide the plate back from the cabinet
        | pull the plate back out of the cabinet; slide the plate out of the goal""",
    "plate-slide-back-side": """slide the plate sideways out of the goal; get the plate out to the
        side; slide the plate out of the cabinet to the side; push the plate out sideways
        | get the plate sideways out of the cabinet; push the plate out of the goal to the side""",
    "peg-unplug-side": """unplug the peg; pull the peg out of the box; take the peg out of the hole;
        pull the plug out to the side
        | pull the peg out of the hole; take the plug out of the box""",
    "soccer": """shoot the ball into the goal; kick the ball into the goal;
        push the ball to the goal; move the soccer ball into the goal
        | push the soccer ball into the goal; shoot the ball to the goal""",
    "stick-push": """push the bottle with the stick; pick up the stick and push the bottle;
        take the stick and move the bottle with it; use the stick to push the bottle
        | use the stick to move the bottle; take the stick and push the bottle with it""",
    "stick-pull": """pull the bottle with the stick; pick up the stick and pull the bottle;
        take the stick and pull the bottle by its handle; use the stick to pull the bottle back
        | use the stick to pull the bottle by its handle; take the stick and pull the bottle""",
    "push-wall": """push the puck round the wall to the ball; take the puck past the wall;
        push the puck past the wall to the green ball; move the puck round the wall
        | move the puck past the wall to the green ball; push the puck round the wall""",
    "reach-wall": """reach over the wall to the red ball; go past the wall to the ball;
        reach the red ball behind the wall; move the hand over the wall to the ball
        | move the hand to the red ball behind the wall; go over the wall to the red ball""",
    "shelf-place": """put the block on the shelf; pick up the block and put it on the shelf;
        lift the block onto the shelf; move the block up to the shelf
        | pick up the block and lift it onto the shelf; put the block onto the shelf""",
    "sweep-into": """sweep the block into the hole; push the block along the table into the hole;
        move the block to the hole; sweep the block over the table to the hole
        | sweep the block along the table to the hole; push the block into the hole""",
    "sweep": """sweep the block off the table; push the block over the edge;
        move the block off the table to the side; sweep the block to the edge of the table
        | push the block off the table; sweep the block over the edge of the table""",
    "window-open": """open the window; push the window open; slide the window to the right;
        open the window with its handle
        | slide the window open; push the window to the right with its handle""",
    "window-close": """close the window; push the window shut; slide the window to the left;
        close the window with its handle
        | slide the window shut; push the window to the left with its handle""",
}


def _parted(said: str) -> Wordings:
    seen, held_out = (
        tuple(" ".join(sentence.split()) for sentence in part.split(";"))
        for part in said.split("|")
    )
    return Wordings(seen, held_out)


WORDINGS = {task: _parted(said) for task, said in _SAID.items()}
