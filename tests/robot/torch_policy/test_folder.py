"""What `verify` lets through: the exported files, and nothing beside them."""

from pathlib import Path

import pytest

from tests.robot.torch_policy.test_signature import signed_by_openssl
from vla_jax.robot.torch_policy.folder import SIGNATURE, SUMS, digest, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "policy_torch").mkdir(parents=True)
    names = ("config.json", "policy_torch/policy.py")
    for name in names:
        (folder / name).write_text(name)
    (folder / SUMS).write_text("".join(f"{digest(folder / name)}  {name}\n" for name in names))
    verify(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    ["more.py", "policy_torch/x__pycache__y/more.py", "policy_torch/__pycache__/more.py"],
)
def test_a_file_more_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("import os")
    with pytest.raises(ValueError, match=f"{name}: not among the exported files"):
        verify(folder)


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "events").symlink_to(tmp_path / "elsewhere")
    file = folder / "config.json"
    file.rename(tmp_path / "config.json")
    file.symlink_to(tmp_path / "config.json")
    with pytest.raises(ValueError, match="got a link") as raised:
        verify(folder)
    assert "config.json: expected a file, got a link" in str(raised.value)
    assert "events: expected a file, got a link" in str(raised.value)


def test_bytecode_is_refused_but_by_the_folders_own_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = folder / "policy_torch" / "__pycache__"
    cache.mkdir()
    (cache / "policy.cpython-311.pyc").write_bytes(b"bytes")
    said = r"policy.cpython-311.pyc: not among the exported files; remove __pycache__"
    with pytest.raises(ValueError, match=said):
        verify(folder)
    monkeypatch.setattr(
        "vla_jax.robot.torch_policy.folder.__file__", str(folder / "policy_torch" / "folder.py")
    )
    verify(folder)


def test_a_required_signature(folder: Path, tmp_path: Path) -> None:
    key, signed = signed_by_openssl(tmp_path, (folder / SUMS).read_bytes())
    with pytest.raises(ValueError, match=r"expected SHA256SUMS.minisig, by the owner of"):
        verify(folder, key)
    (folder / SIGNATURE).write_text(signed)
    verify(folder, key)
    verify(folder)  # nobody has to ask
    (folder / "config.json").write_text("another")
    lines = (folder / SUMS).read_text().splitlines()[1:]
    sums = [f"{digest(folder / 'config.json')}  config.json", *lines]
    (folder / SUMS).write_text("\n".join(sums) + "\n")
    verify(folder)
    with pytest.raises(ValueError, match=r"SHA256SUMS.minisig: .* what it signs was changed"):
        verify(folder, key)


def test_hashes_that_are_none(folder: Path) -> None:
    (folder / SUMS).write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS: expected what experiments.export writes"):
        verify(folder)
