"""Installing: for which platforms it resolves, what an installed copy does in another folder, and
what git does not see of all that is written.
"""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).parents[1]
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
PYTHONS = ("3.11", "3.12", "3.13")
# The purposes that requirements.txt has pins for; it has none for W&B and the compiler of TPUs.
PINNED = ("test", "export", "eight_bits", "metaworld", "lint")
OFFLINE = ("error sending request", "dns error", "network connectivity is disabled")


def requirements(purpose):
    """Those of setup.cfg, "training" for what a plain `pip install .` brings."""
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    text = (
        setup["options"]["install_requires"]
        if purpose == "training"
        else setup["options.extras_require"][purpose]
    )
    return [Requirement(line) for line in text.splitlines() if line]


def pins():
    """{name: Requirement} of requirements.txt."""
    lines = (REPO / "requirements.txt").read_text().splitlines()
    lines = [line.partition("#")[0].strip() for line in lines]
    return {each.name: each for each in map(Requirement, filter(None, lines))}


@pytest.mark.parametrize("purpose", ["training", *PINNED])
def test_each_requirement_has_a_pin_within_its_bounds(purpose):
    pinned = pins()
    for wanted in requirements(purpose):
        pin = pinned[wanted.name]
        (version,) = pin.specifier
        assert version.operator == "=="
        assert wanted.specifier.contains(version.version), (wanted, pin)
        assert pin.marker == wanted.marker


def resolved(tmp_path, lines, platform, python):
    """{name: version} of what an installer takes on a platform, wheels only. Skips where no
    installer or no index is to be had.
    """
    pytest.importorskip("uv", reason="uv is not installed: nothing resolves for other platforms")
    asked = tmp_path / "asked.txt"
    asked.write_text("".join(f"{line}\n" for line in lines))
    words = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    # promise, of tensorflow-datasets, is one file of Python and published as source alone.
    words += ["--only-binary", ":all:", "--no-binary", "promise", "--python", sys.executable]
    words += ["--python-platform", platform, "--python-version", python]
    words += ["--constraint", str(REPO / "requirements.txt"), str(asked)]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        timeout=300,
        # macOS 14, the oldest that torch has wheels for; uv would take 13.
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},
    )
    if any(sign in done.stderr for sign in OFFLINE):
        pytest.skip(f"no package index is reached: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("==") for line in done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_all_pins_resolve_to_wheels(tmp_path, platform, python):
    taken = resolved(
        tmp_path, (REPO / "requirements.txt").read_text().splitlines(), platform, python
    )
    x86 = platform.startswith("x86_64")
    for name, pin in pins().items():
        if name in ("tensorflow-cpu", "rlds"):
            assert (name in taken) == x86
        elif name == "tensorflow":
            assert (name in taken) != x86
        else:
            assert pin.specifier.contains(taken[name.lower().replace("_", "-")])


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_training_needs_neither_torch_nor_cuda(tmp_path, platform):
    taken = resolved(tmp_path, map(str, requirements("training")), platform, "3.11")
    assert "jax" in taken
    assert not [n for n in taken if re.match("torch|tensorflow$|tensorflow-cpu|nvidia|cuda", n)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of a copy that was built as a wheel and installed."""
    pytest.importorskip("setuptools", reason="setuptools is not installed: no wheel is built")
    folder = tmp_path_factory.mktemp("install")
    for name in ("vla_jax", "data_pipelines", "experiments"):
        shutil.copytree(
            REPO / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(REPO / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, folder, folder / "source"], check=True)
    (built,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-index", "--no-deps", "--target", folder / "there", built],
        check=True,
    )
    shutil.rmtree(folder / "source")
    return folder / "there"


def elsewhere(installed, tmp_path, *words):
    """A command in another folder that sees the installed copy alone."""
    return subprocess.run(
        list(map(str, words)),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_an_installed_copy_works_in_another_folder(installed, tmp_path):
    name = installed / "bin" / "vla-jax"
    listed = elsewhere(installed, tmp_path, name)
    assert listed.returncode == 0
    assert "pretrain" in listed.stdout
    words = ["--config=oxe_paligemma.py:tiny", "--dry_run", "--workdir=runs/mine"]
    ours = elsewhere(installed, tmp_path, name, "pretrain", *words)
    assert ours.returncode == 0, ours.stderr
    assert "one window:" in ours.stdout
    helped = elsewhere(installed, tmp_path, sys.executable, "-m", "experiments.evaluate", "--help")
    assert helped.returncode == 0
    assert "--workdir" in helped.stdout
    assert (installed / "vla_jax" / "robot" / "safety" / "limits_example.yaml").is_file()
    assert not (installed / "tests").exists()


@pytest.mark.slow
def test_an_installed_copy_is_no_commit_of_the_project_round_it(installed, tmp_path):
    git = ["git", "-C", str(installed), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "theirs"], check=True)
    code = "from experiments.composition import sources; print(sources.revision())"
    assert elsewhere(installed, tmp_path, sys.executable, "-c", code).stdout == "None\n"


def written():
    """The names that the READMEs' commands write, without those that stand for a reader's own."""
    folders = (".", "data_pipelines", "experiments", "vla_jax", "vla_jax/robot")
    text = "".join((REPO / folder / "README.md").read_text() for folder in folders)
    options = re.findall(r"--(?:out|workdir|onnx|pt2|hf|quarantine|json)[ =]([^\s`\]]+)", text)
    return sorted({name for name in options if re.fullmatch(r"[a-z][\w/.-]*", name)})


def test_what_commands_write_is_ignored_by_git():
    names = written()
    assert {"artefact", "replay", "mine.html", "data", "runs/mine"} <= set(names)
    names += ["runs/index_data", "runs/demo", "build", "vla_jax.egg-info"]  # defaults; make; pip
    for name in names:
        # A folder's name with a slash: git ignores some as folders only.
        words = ["git", "check-ignore", name, f"{name}/"]
        done = subprocess.run(words, cwd=REPO, capture_output=True)
        if done.returncode == 128:
            pytest.skip("not a git checkout")
        assert done.returncode == 0, name


def test_what_the_repository_has_is_not_ignored():
    words = shlex.split("git ls-files --cached --ignored --exclude-standard")
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout == ""
