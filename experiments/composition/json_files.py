"""JSON files that commands write: whole or not at all, and readable by any JSON reader."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_json(file: Path, body: dict[str, Any]) -> None:
    """JSON, whole or not at all. NaN, which JSON has not, is null."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(_plain(body), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, file)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
