"""Named mixtures of datasets, and the check that all of their files are there before anything costs money."""

from pathlib import Path

from data_pipelines.datasets import DATASETS, Dataset

# Weights multiply a dataset's number of windows. oxe_magic_soup is OpenVLA's (commit c8f03f4), which RoboVLMs trains
# on. Members that have no entry in DATASETS yet make the mixture refuse to start: none is dropped in silence.
MIXTURES: dict[str, tuple[tuple[str, float], ...]] = {
    "blocks": (("blocks", 1.0),),
    "bridge": (("bridge", 1.0),),
    "oxe_magic_soup": (
        ("fractal20220817_data", 0.54087122203),
        ("kuka", 0.8341046294),
        ("bridge", 1.0),
        ("taco_play", 2.0),
        ("jaco_play", 1.0),
        ("berkeley_cable_routing", 1.0),
        ("roboturk", 2.0),
        ("viola", 2.0),
        ("berkeley_autolab_ur5", 2.0),
        ("toto", 1.0),
        ("language_table", 0.1),
        ("stanford_hydra_dataset_converted_externally_to_rlds", 2.0),
        ("austin_buds_dataset_converted_externally_to_rlds", 1.0),
        ("nyu_franka_play_dataset_converted_externally_to_rlds", 3.0),
        ("furniture_bench_dataset_converted_externally_to_rlds", 0.1),
        ("ucsd_kitchen_dataset_converted_externally_to_rlds", 2.0),
        ("austin_sailor_dataset_converted_externally_to_rlds", 1.0),
        ("austin_sirius_dataset_converted_externally_to_rlds", 1.0),
        ("dlr_edan_shared_control_converted_externally_to_rlds", 1.0),
        ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", 1.0),
        ("utaustin_mutex", 1.0),
        ("berkeley_fanuc_manipulation", 2.0),
        ("cmu_stretch", 1.0),
    ),
}


def members(name: str) -> tuple[tuple[str, float], ...]:
    """(dataset, weight) pairs of a named mixture. Raises ValueError for an unknown name."""
    if name not in MIXTURES:
        raise ValueError(f"data.mixture: expected one of {', '.join(sorted(MIXTURES))}, got {name!r}")
    return MIXTURES[name]


def problems(root: str | Path, name: str) -> list[str]:
    """Everything that keeps a mixture from being read: one line per dataset, empty when all is there."""
    root = Path(root).expanduser()
    found = []
    for member, _ in members(name):
        if member not in DATASETS:
            # The folder is checked too, so that one run names all that is missing on this machine.
            where = "files are there" if (root / member).is_dir() else f"no folder {root / member}"
            found.append(
                f"{member}: no reader in data_pipelines/datasets yet, {where}; "
                f"gsutil -m cp -r gs://gresearch/robotics/{member} {root}"
            )
            continue
        folder = _folder(root, DATASETS[member])
        if not (folder / "dataset_info.json").is_file():
            found.append(f"{member}: no {folder / 'dataset_info.json'}; {DATASETS[member].download.format(root=root)}")
    return found


def _folder(root: Path, dataset: Dataset) -> Path:
    return root / dataset.tfds_name / dataset.version
