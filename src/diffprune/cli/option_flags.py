"""Write the options in an error message as flags of the command line."""

import re
from collections.abc import Collection


def with_flags(message: str, options: Collection[str]) -> str:
    """Return a message with options as flags: `--num-calibration-images` for `num_calibration_images`.

    A name without underscore may be a plain word. It counts as an option only where a message names one: before a
    colon at the start of a line or of a list entry, and after `set`, `give` or `leave out`.
    """
    if not options:
        return message
    names = "|".join(sorted(options, key=len, reverse=True))
    message = re.sub(rf"(^ *|[(,] ?)({names})(?=: )", lambda m: m[1] + _flag(m[2]), message, flags=re.MULTILINE)
    several = rf"\b(?:set|give|leave out) ({names})(?:(?:, | or | and )(?:{names}))*\b"
    message = re.sub(several, lambda m: re.sub(rf"\b({names})\b", lambda name: _flag(name[1]), m[0]), message)
    compound = "|".join(sorted((name for name in options if "_" in name), key=len, reverse=True))
    if not compound:
        return message
    return re.sub(rf"(?<![\w./'\"=-])({compound})(?![\w/'\"=-]|\.\w)", lambda m: _flag(m[1]), message)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
