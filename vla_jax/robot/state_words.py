"""The robot's state as words of the prompt, in the words of pi0.5 (openpi's PaligemmaTokenizer):

    Task: push the red block left, State: 127 3 255 -;\\nAction:_

(`_` is a space). Each number of the state, normalised to -1..1, is the number of its bin of BINS
equal ones, -1 below them and the last one above. One that the robot lacks is ABSENT, which openpi
does not have: there a policy is of one robot.

The standard library only.
"""

BINS = 256
ABSENT = "-"
WORDS = (ABSENT, *(str(number) for number in range(-1, BINS)))  # a bin's word stands at bin + 2
INSTRUCTION, AFTER = "Task: {}, State:", ";\nAction: "  # before and after the numbers


def cleaned(instruction: str) -> str:
    """The instruction as it stands in the prompt, by openpi's rule."""
    return instruction.strip().replace("_", " ").replace("\n", " ")
