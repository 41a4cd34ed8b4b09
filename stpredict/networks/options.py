"""Options behind an architecture's name, which say what is other than usual about its network.

`m2ort-small:levels=0+1:pool=mean` is an M2ORT of two levels, read by its mean. Colons stand before options and plus
signs between the values of one, so that names can be listed with commas between them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from stpredict.errors import UsageError

YES_NO = {"yes": True, "no": False}


def base_name(architecture: str) -> str:
    """An architecture's name without its options."""
    return architecture.partition(":")[0]


def read_options(architecture: str, config: Any) -> dict[str, Any]:
    """The options behind an architecture's name, as fields of its network's `config`, a dataclass.

    Raises UsageError for what is no option of this network (those are the config's OPTIONS), or no value of one.
    """
    name, *parts = architecture.split(":")
    known: tuple[str, ...] = getattr(config, "OPTIONS", ())
    hints = get_type_hints(config)
    options: dict[str, Any] = {}
    for part in parts:
        option, equals, text = part.partition("=")
        if not known:
            raise UsageError(f"--arch {architecture}: {name} has no options.")
        if option not in known or not equals or option in options:
            raise UsageError(
                f"--arch {architecture}: {part!r} is no option, or is there twice; those of {name} are "
                f"{', '.join(f'{one}={values_in_words(hints[one])}' for one in known)}."
            )
        try:
            options[option] = read_value(text, hints[option])
        except (ValueError, KeyError) as error:
            wanted = values_in_words(hints[option])
            raise UsageError(f"--arch {architecture}: {option}={text} should be {option}={wanted}.") from error
    return options


def read_value(text: str, kind: Any) -> Any:
    """A value of a field of that kind. Raises ValueError or KeyError for any other text."""
    if get_origin(kind) is tuple:
        return tuple(read_value(part, get_args(kind)[0]) for part in text.split("+"))
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(text)
        return text
    if kind is bool:
        return YES_NO[text]
    return float(text) if kind is float else int(text)  # int, or int | None


def values_in_words(kind: Any) -> str:
    """What may stand behind the equals sign."""
    if get_origin(kind) is tuple:
        return "+".join([values_in_words(get_args(kind)[0])] * 2) + "..."
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kind is bool:
        return "yes|no"
    return "0.1" if kind is float else "N"
