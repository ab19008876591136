"""The operator's command line: what it sends, and what it refuses to send."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_jax.robot import operator_cli
from vla_jax.robot.client import Client


class FakeClient(Client):
    """What is sent goes to `sent`."""

    sent: list[Any]

    def __init__(self, url: str, token: str | None, artefact: str | None, tls: Any) -> None:
        FakeClient.sent = [("connect", url, token, artefact)]
        self.handshake = {
            "artefact": "a" * 64, "cameras": ["primary", "wrist"], "image": {"size": 4}, "chunk": 2,
            "datasets": {"blocks": {"action": ["x", "gripper"], "state": ["x", "y", "z"]}},
        }  # fmt: skip

    def close(self) -> None:
        pass

    def reset(self, *arguments: Any) -> None:
        self.sent.append(("reset", *arguments))

    def act(self, images: dict[str, Any], proprio: Any) -> Any:
        self.sent.append(({name: image.shape for name, image in images.items()}, proprio.shape))

    def ask(self, message: dict[str, Any], answer: str) -> dict[str, Any]:
        self.sent.append(message)
        latched = "emergency" if message["type"] == "stop" else None
        return {"type": answer, "session": message["session"], "latched": latched}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(operator_cli, "Client", FakeClient)
    (tmp_path / "token").write_text("robots\n")
    (tmp_path / "operator").write_text("people\n")
    monkeypatch.chdir(tmp_path)
    return ["--url", "ws://box:1"]


def test_check_sends_frames_of_the_right_sizes(
    url: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        operator_cli.main([*url, "--check", "--token_file", "token", "--artefact", "a" * 64]) == 0
    )
    frame = {"primary": (4, 4, 3), "wrist": (4, 4, 3)}, (3,)
    connected = "connect", "ws://box:1", "robots", "a" * 64
    assert FakeClient.sent == [connected, ("reset", "check", "blocks"), *[frame] * 20]
    out = capsys.readouterr().out
    assert '"artefact": "aaaa' in out
    assert "20 frames: p50 " in out


def test_a_stop_is_for_all_sessions_unless_one_is_named(
    url: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert operator_cli.main([*url, "--stop", "fire", "--operator_token_file", "operator"]) == 0
    stop = {"type": "stop", "why": "fire", "session": "*", "operator_token": "people"}
    assert FakeClient.sent == [("connect", "ws://box:1", "people", None), stop]
    assert capsys.readouterr().out == "session *: stopped: emergency\n"
    operator_cli.main(
        [*url, "--stop", "fire", "--operator_token_file", "operator", "--session", "3f"]
    )
    assert FakeClient.sent[1]["session"] == "3f"


def test_leave_to_move(url: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    who = ["--session", "3f", "--by", "Ada", "--gripper", "1"]
    assert (
        operator_cli.main([*url, "--reset_safety", *who, "--operator_token_file", "operator"]) == 0
    )
    expected = {"type": "safety_reset", "by": "Ada", "gripper": 1.0, "pose": None, "session": "3f"}
    assert FakeClient.sent[1] == {**expected, "operator_token": "people"}
    assert capsys.readouterr().out == "session 3f: may move\n"


def test_leave_to_move_of_several_grippers_and_a_pose(
    url: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    who = ["--reset_safety", "--operator_token_file", "operator", "--session", "3f", "--by", "Ada"]
    told = ["--gripper", "left_gripper=1", "right_gripper=0.5", "--pose", "0.1", "-0.2", "0"]
    assert operator_cli.main([*url, *who, *told]) == 0
    assert FakeClient.sent[1]["gripper"] == {"left_gripper": 1.0, "right_gripper": 0.5}
    np.testing.assert_array_equal(FakeClient.sent[1]["pose"], [0.1, -0.2, 0])
    assert operator_cli.main([*url, *who]) == 0
    assert FakeClient.sent[1]["gripper"] is None  # a base has none; a server of an arm refuses it
    assert operator_cli.main([*url, *who, "--gripper", "left=open"]) == 1
    assert "--gripper: expected 0 (closed) to 1 (open), or NAME=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--stop", "fire"], "need --operator_token_file"),
        (
            ["--reset_safety", "--operator_token_file", "operator", "--by", "Ada"],
            "needs --session and --by, and --gripper where there is one",
        ),
        (["--check", "--stop", "fire"], "not allowed with"),
        ([], "is required"),
    ],
)
def test_half_a_command_is_refused(
    url: list[str], arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        operator_cli.main([*url, *arguments])
    assert match in capsys.readouterr().err


def test_a_refusal_is_one_line(
    url: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, tls: Any) -> None:
        raise ConnectionError("ws://box:1: is the server up?")

    monkeypatch.setattr(FakeClient, "__init__", refuse)
    assert operator_cli.main([*url, "--check"]) == 1
    assert capsys.readouterr() == ("", "ws://box:1: is the server up?\n")
