"""One file a backbone: its sizes, adapter, prompt, and the names of its released weights.

What a file has to say is `BackboneFile`: vla_jax/build.py and experiments/import_weights.py ask for
nothing else. Backbones never import each other; what several share lies in vla_jax/models.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from vla_jax.models.tokenizer import Tokenizer
from vla_jax.params import Params
from vla_jax.weights.pretrained import Entry


@runtime_checkable
class BackboneFile(Protocol):
    """A module of this folder."""

    @property
    def MODEL(self) -> Callable[..., Any]:
        """(config, rngs) -> nnx.Module that is a types.Backbone."""
        ...

    @property
    def CONFIGS(self) -> Mapping[str, Any]:
        """Variant -> its config, a dataclass with image_size, vocab, block, depth, remat and
        layers: the released sizes, and one called tiny.
        """
        ...

    @property
    def OWN_LM_HEAD(self) -> bool:
        """The output layer is not the token table; it is made where config.has_lm_head."""
        ...

    def load(
        self,
        path: Path | str,
        config: Any,
        specs: dict[str, jax.ShapeDtypeStruct],
        allow_missing: Sequence[str] = (),
    ) -> Params:
        """Pretrained parameters in the dtypes and shardings of `specs`; strict."""
        ...

    def hub(self, variant: str) -> str:
        """Where a variant's weights are on the Hugging Face hub."""
        ...

    def hf_config(self, body: dict[str, Any]) -> Any:
        """The config that a folder's config.json describes; what is not ours is refused by name."""
        ...

    def hf_names(self, config: Any) -> dict[str, Entry]:
        """Our parameters -> names in a Hugging Face checkpoint."""
        ...

    def dead_names(self, config: Any) -> list[str]:
        """Arrays of a checkpoint that the model does not compute with, and that may be there."""
        ...

    def prompt(self, instruction: str) -> str:
        """The text that the tokenizer gets."""
        ...

    def load_tokenizer(self, folder: Path | str, layout: str = "prefix") -> Tokenizer:
        """The tokenizer of a local folder."""
        ...

    def train_tiny_tokenizer(
        self, texts: Sequence[str], out: Path | str, vocab: int = 1600
    ) -> None:
        """A small tokenizer of the same kind, of at most `vocab` ids, for models trained from
        nothing.
        """
        ...
