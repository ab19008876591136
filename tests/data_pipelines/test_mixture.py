"""What `data.mixture` may say, and the check that everything is there."""

import dataclasses

import pytest

from data_pipelines import mixture
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.datasets.mixtures import MIXTURES


def resolve(wanted):
    return mixture.resolve(wanted, DATASETS, MIXTURES)


def test_names_of_mixtures_of_datasets_and_lists():
    assert resolve("bridge") == (("bridge", 1.0),)
    assert resolve("taco_play") == (("taco_play", 1.0),)
    assert resolve([["taco_play", 2], ["viola", 0.5]]) == (("taco_play", 2.0), ("viola", 0.5))
    assert dict(resolve("oxe_magic_soup"))["kuka"] == 0.8341046294


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_every_mixture_can_be_asked_for(name):
    assert resolve(name) == MIXTURES[name]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("oxe_magic_soop", r"got 'oxe_magic_soop'; did you mean oxe_magic_soup"),
        ("rt1", r"expected a mixture \(blocks, .*got 'rt1'"),
        ([("viola", 1.0), ("nothing", 2.0)], "unknown nothing"),
        ([("viola", 1.0), ("viola", 2.0)], "viola twice"),
        ([], "got none"),
    ],
)
def test_what_is_not_known_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        resolve(wanted)


def test_all_missing_datasets_are_listed_with_what_brings_them(tmp_path):
    write_blocks(tmp_path, train=2, val=2)
    wanted = [DATASETS[name] for name in ("blocks", "viola", "bridge")]
    lines = mixture.problems(str(tmp_path), wanted)
    assert [line.split(":")[0] for line in lines] == ["viola", "bridge"]
    assert f"{tmp_path}/viola/0.1.0/dataset_info.json" in lines[0]
    assert "gsutil" in lines[0]
    assert str(tmp_path) in lines[1].split(";")[1]


def test_members_that_do_not_fit_the_policy_are_listed():
    """No primary camera, no camera at all: nothing is dropped in silence, as OpenVLA does."""
    names = ("bridge", "nyu_door_opening_surprising_effectiveness", "ppgm")
    lines = mixture.misfits([DATASETS[name] for name in names], ("primary",))
    assert [line.split(":")[0] for line in lines] == list(names[1:])
    assert "has wrist, none of model.cameras ('primary',)" in lines[0]
    assert "has no camera" in lines[1]
    unfit = {
        name: mixture.misfits([DATASETS[member] for member, _ in pairs], ("primary",))
        for name, pairs in MIXTURES.items()
    }
    assert not unfit["oxe_magic_soup"]
    assert not unfit["oxe_magic_soup_plus"]
    assert any(line.startswith("berkeley_rpt") for line in unfit["rtx_franka"])


def space(*datasets):
    return mixture.action_space(
        [DATASETS[each] if isinstance(each, str) else each for each in datasets]
    )


def test_dims_are_matched_by_name_in_the_order_in_which_they_come():
    names, binary = space("bridge", "roboset")
    eef, joints = DATASETS["bridge"].action_names, DATASETS["roboset"].action_names
    assert names == (*eef, *joints[:-1])
    assert binary == ("gripper",)
    assert space("roboset", "bridge").names == (*joints, *eef[:-1])
    two_arms = space("aloha_static_dataset", "aloha_mobile_dataset")
    assert (len(two_arms.names), two_arms.binary) == (16, ("left_gripper", "right_gripper"))
    assert space("gnm_dataset") == (("forward", "left"), ())


def test_what_cannot_be_one_policy_is_refused_naming_both():
    """Everything that is wrong, at once."""
    bridge = DATASETS["bridge"]
    in_inches = dataclasses.replace(
        bridge, name="inches", action_units={"x": "inch"}, state_units={"x": "inch"}, binary=()
    )
    with pytest.raises(ValueError, match="action x") as refused:
        space("bridge", in_inches, "gnm_dataset")
    units, kind, apart = str(refused.value).splitlines()
    assert "action x: expected one unit in all datasets, got 'm' in bridge and 'inch' in" in units
    assert "action gripper: expected one kind in all datasets, got '0 or 1' in bridge and" in kind
    assert "'continuous' in inches" in kind
    assert "gnm_dataset: its actions are forward, left: expected a dim that another" in apart
    with pytest.raises(ValueError, match="state x: expected one unit"):
        mixture.state_space([bridge, in_inches])
    with pytest.raises(ValueError, match="proprio: expected a dataset with a state, got none of"):
        mixture.state_space([dataclasses.replace(bridge, state_names=())])
