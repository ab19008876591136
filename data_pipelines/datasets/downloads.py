"""Where the files of a dataset come from: commands and sentences with {root} where the data root
goes.
"""


def bucket(source: str, folder: str = "") -> str:
    """From the Open X-Embodiment bucket: source = "name/version", into {root}/name unless `folder`
    is another name.
    """
    folder = f"{{root}}/{folder or source.split('/')[0]}"
    return f"mkdir -p {folder} && gsutil -m cp -r gs://gresearch/robotics/{source} {folder}"


def bring(name: str, version: str, origin: str) -> str:
    """For a dataset without a public RLDS copy that we know of."""
    return f"{origin}; we know of no public RLDS copy: put yours into {{root}}/{name}/{version}"
