"""An OpenVLA-OFT checkpoint is refused with what lacks."""

import json
from pathlib import Path

import pytest

from experiments import import_weights


def given(root: Path, **config) -> list[str]:
    body = {
        "model_type": "openvla", "llm_backbone_id": "llama2-7b-pure",
        "timm_model_ids": ["vit_large_patch14_dinov2", "vit_so400m_patch14_siglip_224"],
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps({**body, **config}))
    return ["--from", f"openvla_oft:{root}", "--out", str(root / "out")]


def test_it_says_what_lacks_and_what_there_is(tmp_path: Path) -> None:
    argv = given(tmp_path)
    with pytest.raises(ValueError, match=r"got model_type 'openvla' and 0 files action_head--"):
        import_weights.main(argv)
    (tmp_path / "action_head--150000_checkpoint.pt").touch()
    (tmp_path / "proprio_projector--150000_checkpoint.pt").touch()
    with pytest.raises(ValueError, match="has no counterpart here") as refused:
        import_weights.main(argv)
    for part in (
        "dinov2", "siglip_224", "llama2-7b-pure", "ours are paligemma, kosmos2, llava, flamingo",
        "action_head--150000_checkpoint.pt would fit the head oft",
        "proprio_projector--150000_checkpoint.pt is no state token of ours",
        "dataset_statistics.json",
    ):  # fmt: skip
        assert part in str(refused.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="got model_type 'llava' and 1 files"):
        import_weights.main(given(tmp_path, model_type="llava"))


def test_what_is_no_folder_of_it_is_refused(tmp_path: Path) -> None:
    argv = ["--from", f"openvla_oft:{tmp_path / 'none'}", "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"expected a folder with OpenVLA's config\.json"):
        import_weights.main(argv)
