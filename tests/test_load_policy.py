"""vla_jax.load_policy: what it opens, what must be said, and what it does without."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vla_jax
from tests.older.unpack import unpack
from vla_jax.export.artefact import sign

REPO = Path(__file__).resolve().parents[1]


def ten_lines() -> str:
    """The code in README that opens a policy."""
    blocks = (REPO / "README.md").read_text().split("```python\n")[1:]
    (code,) = [block.split("```")[0] for block in blocks if "vla_jax.load_policy" in block]
    return code


def edit_meta(directory: Path, **changes: Any) -> None:
    """Changes the meta item of the checkpoint of step 4."""
    file = directory / "4" / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["artefact", pytest.param("run", marks=pytest.mark.slow)])
def test_python_in_ten_lines(name: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "runs/demo").mkdir(parents=True)
    unpack(name, tmp_path).rename(tmp_path / "runs/demo/policy")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"image": np.zeros((32, 32, 3), np.uint8), "state": np.zeros(7)}
    exec(ten_lines(), names)
    assert names["actions"].shape == (4, 7)
    assert names["actions"].dtype == np.float32


def test_images_of_any_size_are_resized_as_in_training(tmp_path: Path) -> None:
    """An artefact's own policy refuses them."""
    from vla_jax.robot.resize import resize

    policy = vla_jax.load_policy(unpack("artefact", tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    chunks = []
    for given in (image, resize(image, 32, "lanczos")):
        policy.reset("push the red block left")
        chunks.append(policy.act({"primary": given}))
    np.testing.assert_array_equal(*chunks)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a work directory, .* give the --workdir"):
        vla_jax.load_policy(tmp_path)
    with pytest.raises(ValueError, match="expected a work directory"):
        vla_jax.load_policy(tmp_path / "nowhere")
    folder = unpack("artefact", tmp_path)
    for given in ({"step": 3}, {"tokenizer": folder}):
        with pytest.raises(ValueError, match="leave out step and tokenizer"):
            vla_jax.load_policy(folder, **given)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="expected an artefact with SHA256SUMS"):
        vla_jax.load_policy(folder)


def test_a_run_is_its_work_directory_or_its_checkpoints(tmp_path: Path) -> None:
    workdir = unpack("run", tmp_path)
    for folder in (workdir, str(workdir / "checkpoints")):
        policy = vla_jax.load_policy(folder, step=4, device="cpu", dtype="bfloat16")
        with pytest.raises(ValueError, match="expected reset"):
            policy.act({"primary": np.zeros((32, 32, 3), np.uint8)})
    with pytest.raises(ValueError, match="a complete checkpoint of step 8, got steps \\[4\\]"):
        vla_jax.load_policy(workdir, step=8)
    with pytest.raises(ValueError, match="dtype: expected one of float32, bfloat16, got 'float16'"):
        vla_jax.load_policy(workdir, dtype="float16")


def test_the_tokenizer_may_have_moved_but_not_changed(tmp_path: Path) -> None:
    workdir = unpack("run", tmp_path)
    moved = (workdir / "tokenizer").rename(tmp_path / "words")
    meta = {"folder": "tokenizer", "sha256": json.loads(
        (workdir / "checkpoints/4/meta/metadata").read_text()
    )["tokenizer"]["sha256"]}  # fmt: skip
    edit_meta(workdir / "checkpoints", tokenizer=meta)
    with pytest.raises(ValueError, match=r"expected its tokenizer at tokenizer"):
        vla_jax.load_policy(workdir)
    vla_jax.load_policy(workdir, tokenizer=moved)
    other = unpack("import", tmp_path) / "tokenizer"
    with pytest.raises(ValueError, match="is not the one the checkpoint was trained with"):
        vla_jax.load_policy(workdir, tokenizer=other)


@pytest.mark.parametrize("kind", ["run", "artefact"])
def test_whose_robot_it_is_must_be_said_where_there_are_several(kind: str, tmp_path: Path) -> None:
    folder = unpack(kind, tmp_path)
    with pytest.raises(ValueError, match=r"dataset: expected one of blocks, got 'bridge'; each"):
        vla_jax.load_policy(folder, dataset="bridge")
    if kind == "run":
        meta = json.loads((folder / "checkpoints/4/meta/metadata").read_text())
        two = meta["datasets"] | {"bridge": meta["datasets"]["blocks"]}
        edit_meta(folder / "checkpoints", datasets=two)
    else:
        stats = json.loads((folder / "norm_stats.json").read_text())
        stats["datasets"]["bridge"] = stats["datasets"]["blocks"]
        (folder / "norm_stats.json").write_text(json.dumps(stats))
        sign(folder)
    with pytest.raises(
        ValueError, match=r"dataset: expected one of blocks, bridge, got None; each"
    ):
        vla_jax.load_policy(folder)
    vla_jax.load_policy(folder, dataset="bridge").reset("push the red block left")


def test_a_backbone_alone_is_no_policy(tmp_path: Path) -> None:
    workdir = unpack("run", tmp_path)
    edit_meta(workdir / "checkpoints", datasets={})
    with pytest.raises(ValueError, match=r"has no action spec: .* at the first training"):
        vla_jax.load_policy(workdir)


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import vla_jax
"""


def in_python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_importing_it_needs_neither_jax_nor_torch() -> None:
    in_python(WITHOUT.replace("{names}", "('jax', 'flax', 'torch', 'jaxtyping')"))


@pytest.mark.slow
def test_an_artefact_needs_no_jax_and_a_run_nothing_of_ours_in_torch(tmp_path: Path) -> None:
    artefact, run = unpack("artefact", tmp_path), unpack("run", tmp_path)
    refused = WITHOUT.replace("{names}", "('jax', 'flax', 'jaxtyping', 'transformers', 'PIL')")
    in_python(f"{refused}\nvla_jax.load_policy({str(artefact)!r}).reset('push')")
    # torch itself is imported by transformers, which reads the tokenizer.
    rooms = ("vla_jax.robot.", "vla_jax.export", "experiments", "data_pipelines")
    # What data, policies and robots compute alike, in numpy.
    shared = {
        f"vla_jax.robot.{name}"
        for name in (
            "held",
            "realtime",
            "relative",
            "resize",
            "rotations",
            "sensing",
            "state_words",
        )
    }
    in_python(
        f"import sys, vla_jax\nvla_jax.load_policy({str(run)!r}).reset('push')\n"
        f"assert not {{name for name in sys.modules if name.startswith({rooms})}} - {shared}"
    )
