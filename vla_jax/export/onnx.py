"""A step of the policy in ONNX, checked in onnxruntime: for runtimes without Python or torch, such
as TensorRT.

model.onnx, model.onnx.data  one step of one episode, opset 20, float32; the weights are in .data
io.json                      names, shapes and types of what goes in and comes out: see derived.py
config.json, norm_stats.json, tokenizer.json, golden.npz
                             the artefact's: the prompt, what the numbers mean, and frames to check
                             a runtime with
README.md                    how to run it
SHA256SUMS                   of all of these

Always float32: it is what every runtime computes, and one for 16 or 8 bits converts by its own
rules.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_jax.export import derived
from vla_jax.robot.torch_policy import golden, load

OPSET = 20
FLAG = "--onnx"


def write(origin: Path, out: Path) -> list[golden.Row]:
    """Writes the folder `out` of the artefact in `origin` and returns its proof.

    Raises ValueError for a folder that is there, and when onnxruntime computes something else than
    JAX; no folder is left behind then.
    """
    policy = load(origin)
    given = derived.example(policy)
    with torch.inference_mode():
        made = derived.OneStep(policy.network)(given)
    with derived.whole(out, FLAG) as part:
        program = torch.onnx.export(
            derived.exported(policy, given), opset_version=OPSET, dynamo=True, verbose=False,
            input_names=list(given), output_names=list(made),
        )  # fmt: skip
        assert program is not None
        program.save(part / "model.onnx", external_data=True)
        derived.accompany(origin, part, given, made)
        (part / "README.md").write_text(readme(policy.config))
        rows = derived.replay(session(part), policy, given, part / "golden.npz", "float32")
        derived.check(FLAG, "onnxruntime and JAX", rows)
    return rows


def readme(config: dict[str, Any]) -> str:
    """How to run the folder; tests run its code."""
    return f"""# A step of a robot policy in ONNX

`io.json` lists inputs and outputs: one episode, fixed shapes. The artefact's files are beside it:
`config.json` (ids before and after the instruction's, image size and resize rule),
`norm_stats.json` (per dataset what the numbers of an action and a state mean), `tokenizer.json`,
and `golden.npz`, whose frames this program was checked with.

```python
import hashlib, json, numpy as np, onnxruntime
from pathlib import Path

{derived.CHECK}
io = json.loads(Path("io.json").read_text())
stats = json.loads(Path("norm_stats.json").read_text())["datasets"]
names = json.loads(Path("config.json").read_text())["action_names"]
session = onnxruntime.InferenceSession("model.onnx")
state = {{
    name: np.zeros(x["shape"], x["dtype"])
    for name, x in io["inputs"].items() if name.startswith("state")
}}

# inputs: all that is not state. Cameras: {derived.cameras(config)}; `first` is True at an
# episode's first frame.
{derived.held(config)}def step(inputs, state):
    out = dict(zip(io["outputs"], session.run(list(io["outputs"]), {{**inputs, **state}})))
    return out["action"][0], {{name: out["next_" + name] for name in state}}

# proprio and past go the other way, step by step: clip to low and high, minus offset, over scale,
# each number where its name stands in config.json's state_names or action_names, 0 elsewhere.
# Where robots differ: dims and proprio_mask are True for those that the robot has, embodiment is
# its dataset's place in config.json's embodiments.
def robot_units(action, dataset):
    spec = stats[dataset]["action"]
    action = action[..., [names.index(name) for name in spec["names"]]]  # the robot's own dims
    for each in reversed(spec["steps"]):
        action = action * np.array(each["scale"]) + np.array(each["offset"])
    for i in spec["constant"]:  # hardly any motion in the training data: none is made up
        low, high = (spec["steps"][0][key][i] for key in ("low", "high"))
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        action[..., i] = np.clip(action[..., i], low, high)
    action[..., spec["binary"]] = action[..., spec["binary"]] > 0.5
    if spec["relative"]:
        raise ValueError("these are relative to the robot's state: to_absolute of the artefact's"
                         " policy_torch/relative.py makes positions of them")
    return action
```
"""


def session(part: Path) -> Any:
    """The written program as a function of arrays."""
    import onnxruntime  # here: only this output needs it

    session = onnxruntime.InferenceSession(part / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = list(json.loads((part / "io.json").read_text())["outputs"])
    known = {port.name for port in session.get_inputs()}

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = session.run(outputs, {name: x for name, x in given.items() if name in known})
        return dict(zip(outputs, values, strict=True))

    return run
