"""From YAML files and `key=value` words to a checked `Config`, and back to YAML.

Errors name the key, what was given, what was expected, and the nearest known key.
"""

import difflib
import io
import re
from pathlib import Path
from typing import get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from proav.config import Config, MDSATrainConfig, Section
from proav.errors import ConfigError

TRAINED_STAGES = ("mdsa", "stdit", "distill")
STAGES_OF_EVERY_RUN = ("mdsa", "stdit")
"""The stages that `train.KEY` sets if no stage is chosen."""
WHOLE_VALUES = ("task_weights", "axes", "vectors", "encoders")
"""Settings whose value is a mapping: a file laid over another replaces the whole mapping."""


def load_config(path: str | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of the YAML file `path`, with `section.key=value` words laid over it.

    path: None means the defaults alone. A file may begin with `base: OTHER.yaml`: it is then laid over
    OTHER.yaml, a path relative to the file's own folder.
    overrides: the words; `train.KEY` means the training section of the chosen stage, or of MDSA and ST-DiT if
    no stage is chosen.
    A value `${section.key}` stands for the value that this key has after all files and words.
    Raises ConfigError.
    """
    words = list(overrides)
    for word in words:
        if "=" not in word or word.startswith("="):
            raise ConfigError(
                f"cannot read the override {word!r}; expected section.key=value, such as train.batch_size=8"
            )
    files = _read_with_bases(path) if path else []
    stage = next((word.split("=", 1)[1] for word in reversed(words) if word.startswith("stage=")), None)
    stage = stage or next((file["stage"] for file in files if "stage" in file), None)
    if isinstance(stage, str) and "${" in stage:
        raise ConfigError(f"stage={stage} names another key; write one of {', '.join(TRAINED_STAGES)}")
    settings: dict = {}
    for file in reversed(files):
        settings = _lay_over(settings, _spread_train(file, stage))
    origin = f"{path} or the command line" if path and words else path
    merged = _merge(settings, _name_stage(words, stage), path)
    return config_from_dict(_resolve(merged, stage, origin), origin=origin)


def config_from_dict(settings: dict, *, origin: str | None = None) -> Config:
    """Checks nested settings and fills in defaults. Raises ConfigError.

    origin: where the settings come from, for messages.
    """
    _check_keys(settings, Config, "", origin)
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_told(error.errors(), settings, f" (in {origin})" if origin else "")) from None


def _told(errors: list[dict], settings: dict, where: str) -> str:
    """The first of pydantic's errors in words. A value that may have several types has an error for each."""
    first = errors[0]
    if first["type"] == "value_error":  # a rule of ours: the message already names the keys
        return first["msg"].removeprefix("Value error, ") + where
    keys = [_key_of(error["loc"], settings) for error in errors]
    key = max((other for other in keys if f"{other}.".startswith(f"{keys[0]}.")), key=len)
    of_key = [error for error, other in zip(errors, keys) if other == key]
    said = "; or ".join(dict.fromkeys(error["msg"][:1].lower() + error["msg"][1:] for error in of_key))
    hint = _field_doc(key)
    return f"{key}={of_key[0]['input']!r}{where}: {said}" + (f". {hint}" if hint else "")


def _key_of(loc: tuple[str | int, ...], settings: dict) -> str:
    """The dotted key of a place in pydantic's words, which also name types: only what `settings` holds."""
    names, value = [], settings
    for part in loc:
        keys = (
            value if isinstance(value, dict) else range(len(value) if isinstance(value, list | tuple) else 0)
        )
        if part in keys:
            names.append(str(part))
            value = value[part]
    return ".".join(names)


def config_to_dict(config: Config) -> dict:
    """Plain nested values: what is stored with every checkpoint and sample."""
    return config.model_dump(mode="json")


def config_to_yaml(config: Config) -> str:
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def describe_settings(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every setting below a section as (dotted key, default, documentation), in file order.

    prefix: put in front of each key, such as "mdsa.".
    """
    rows = []
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Section):
            rows += describe_settings(type(default), f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(default), field.description or ""))
    return rows


def _spread_train(settings: dict, stage: str | None) -> dict:
    """A file's section `train:` moved into the stages' sections; values already given there win."""
    if "train" not in settings:
        return settings
    if not isinstance(section := settings["train"], dict):
        raise ConfigError(f"train={section!r} is a section, expected keys below it, such as train.batch_size")
    spread = {key: value for key, value in settings.items() if key != "train"}
    for name in [stage] if stage in TRAINED_STAGES else STAGES_OF_EVERY_RUN:
        model = spread.get(name) or {}
        own = model.get("train") or {} if isinstance(model, dict) else None
        if isinstance(own, dict):  # else `_check_keys` reports it
            spread[name] = {**model, "train": {**section, **own}}
    return spread


def _read_with_bases(path: str, above: tuple[str, ...] = ()) -> list[dict]:
    """The settings of a YAML file, then those of its base file, then those of that file's base, and so on.

    The top-level key `base` names the base file, relative to the folder of the file that has the key.
    above: the files whose `base` keys led to this one; a file among them would close a circle.
    """
    settings, here = _read_yaml(path), str(Path(path).resolve())
    base = settings.pop("base", None)
    if base is None:
        return [settings]
    if not isinstance(base, str):
        raise ConfigError(
            f"base={base!r} in {path}: expected the path of a YAML file, relative to the folder of {path}, "
            "such as base: ../demo.yaml"
        )
    if here in above:
        raise ConfigError(
            f"base={base} in {path}: the files name each other in a circle; remove one of the base keys"
        )
    below = Path(path).parent / base
    if not below.is_file():
        raise ConfigError(
            f"base={base} in {path}: there is no file {below}; expected a path relative to the folder of "
            f"{path}, such as base: ../demo.yaml"
        )
    return [settings, *_read_with_bases(str(below), (*above, here))]


def _lay_over(below: dict, above: dict, prefix: str = "") -> dict:
    """`below`, with the values of `above` in place of its own. Sections are merged, but not WHOLE_VALUES.

    prefix: put in front of the keys in messages, such as "mdsa.".
    """
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and key not in WHOLE_VALUES:
            _check_own(prefix + key, merged.get(key))
            if isinstance(merged.get(key), dict):
                value = _lay_over(merged[key], value, f"{prefix}{key}.")
        merged[key] = value
    return merged


def _check_own(key: str, value: object) -> None:
    """Raises ConfigError if a section is `${other.section}`: one of its keys cannot be changed alone."""
    if isinstance(value, str) and "${" in value:
        raise ConfigError(
            f"{key}={value} is another section as a whole, so that none of its keys can be changed alone; "
            f"write the keys of {key} one by one, such as KEY: ${{SECTION.KEY}}"
        )


def _read_yaml(path: str) -> dict:
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            str(file), [str(p) for p in Path("configs").rglob("*.yaml")], n=1, cutoff=0.4
        )
        raise ConfigError(
            f"no configuration file {path}; expected a YAML file"
            + (f", such as {near[0]}" if near else " such as configs/demo.yaml")
        )
    try:
        text = file.read_text(encoding="utf-8")
        # OmegaConf.load raises OSError for a file that holds a single value
        loaded = OmegaConf.load(io.StringIO(text))
        values = OmegaConf.to_container(loaded)  # `_resolve` replaces ${...}, when all is laid over
        if isinstance(values, dict) and "base" in values:
            values["base"] = loaded["base"]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        values = yaml.safe_load(text)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected sections of keys such as `clip:`")
    return values


def _merge(settings: dict, words: list[str], path: str | None) -> DictConfig:
    """Lays dotted words over nested settings; each word replaces the whole value at its key.

    path: the file of the settings, for messages.
    """
    word = path
    try:
        merged = OmegaConf.create(settings)
        for word in words:
            key, value = word.split("=", 1)
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))["v"]
            section = OmegaConf.to_container(merged)
            for place, name in enumerate(names := key.split(".")[:-1], 1):
                section = section.get(name) if isinstance(section, dict) else None
                _check_own(".".join(names[:place]), section)
            OmegaConf.update(merged, key, parsed, merge=False, force_add=True)
        return merged
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"cannot read the override {word}: {' '.join(str(error).split())}; "
            "quote values with special characters"
        ) from None


def _resolve(merged: DictConfig, stage: str | None, origin: str | None) -> dict:
    """Plain settings, with the values that `${section.key}` stands for.

    stage: the chosen stage; `${train.KEY}` is of its training section, or of MDSA's if no stage is chosen.
    origin: where the settings come from, for messages.
    """
    train = f"{stage if stage in TRAINED_STAGES else STAGES_OF_EVERY_RUN[0]}.train"
    try:
        if OmegaConf.select(merged, train) is None:
            return OmegaConf.to_container(merged, resolve=True)
        OmegaConf.update(merged, "train", f"${{{train}}}", force_add=True)
        settings = OmegaConf.to_container(merged, resolve=True)
        del settings["train"]
        return settings
    except OmegaConfBaseException as error:
        raise ConfigError(_unresolved(error, f" (in {origin})" if origin else "")) from None


def _unresolved(error: OmegaConfBaseException, where: str) -> str:
    """Why a `${section.key}` stands for nothing, and what to type."""
    key, reason = error.full_key, str(error).splitlines()[0]
    missing = re.search("key '(.*)'", reason) if isinstance(error, InterpolationKeyError) else None
    if missing is None:
        return f"the ${{...}} of {key}{where} stands for nothing: {reason}; write a value in its place"
    near = nearest_key(missing[1])
    mend = f"did you mean ${{{near}}}?"
    if near in (None, missing[1]):
        mend = f"give {missing[1]} a value, or write a value in place of the ${{...}}"
    return f"{key}{where} names ${{{missing[1]}}}, but no file and no override has this key; {mend}"


def _name_stage(words: list[str], stage: str | None) -> list[str]:
    stages = [stage] if stage in TRAINED_STAGES else list(STAGES_OF_EVERY_RUN)
    named = []
    for word in words:
        named += [f"{name}.{word}" for name in stages] if word.startswith(("train.", "train=")) else [word]
    return named


def _check_keys(settings: dict, section: type[BaseModel], prefix: str, origin: str | None) -> None:
    """Raises ConfigError for a key that the section does not have, and for a section that is no mapping.

    settings: values of this section, nested.
    section: the section's model.
    prefix: put in front of the section's keys, such as "mdsa.".
    origin: where the settings come from, for messages.
    """
    for key, value in settings.items():
        if key not in section.model_fields:
            given, inner = f"{prefix}{key}", value
            while isinstance(inner, dict) and len(inner) == 1:  # so that an override is named in full
                name, inner = next(iter(inner.items()))
                given += f".{name}"
            near = nearest_key(given)
            where = f" in {origin}" if origin else ""
            hint = f"did you mean {near}?" if near else "--help lists all keys"
            raise ConfigError(f"unknown key {given}{where}; {hint}")
        inner = section.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{prefix}{key}={value!r} is a section, expected keys below it, "
                    f"such as {prefix}{key}.{next(iter(inner.model_fields))}"
                )
            _check_keys(value, inner, f"{prefix}{key}.", origin)


def nearest_key(key: str) -> str | None:
    """The key that was probably meant; None if no known key is near.

    Three rules are tried in turn: the nearest known key, the nearest key with the same last name, and
    correction level by level.
    """
    known, first = _all_keys(Config, ""), key.split(".")[0]
    if first not in Config.model_fields and first != "train":  # perhaps a misspelt `train`
        known += ["train", *_all_keys(MDSATrainConfig, "train.")]
    same_name = [other for other in known if other.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(key, same_name, n=1, cutoff=0.0)
    return near[0] if near else _nearest_by_level(key, known)


def _nearest_by_level(key: str, known: list[str]) -> str | None:
    """The key with its names corrected level by level, as far as near names exist.

    known: all keys. Returns None if nothing changes.
    """
    parts, found = key.split("."), ""
    for part in parts:
        prefix = f"{found}." if found else ""
        names = [other.removeprefix(prefix) for other in known if other.startswith(prefix)]
        near = difflib.get_close_matches(part, [name for name in names if "." not in name], n=1, cutoff=0.6)
        if not near:
            break
        found = prefix + near[0]
    return found if found and not f"{key}.".startswith(f"{found}.") else None


def _all_keys(section: type[BaseModel], prefix: str) -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _field_doc(key: str) -> str | None:
    """The setting of which `key` is the whole or a part, and what it means; None if there is none."""
    section, names = Config, []
    for part in key.split("."):
        field = section.model_fields.get(part)
        if field is None:
            return None
        names.append(part)
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            values = get_args(field.annotation)
            choices = (
                f" One of {', '.join(map(str, values))}."
                if values and all(isinstance(value, str) for value in values)
                else ""
            )
            return f"{'.'.join(names)}: {field.description or ''}{choices}"
        section = field.annotation
    return None
