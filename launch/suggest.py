"""Near misses: what a person probably meant by a word that is not known."""

import difflib
from collections.abc import Collection

MAX_NAMED = 40
"""A list of known names stops here and counts the rest."""


def near_miss(word: str, known: Collection[str]) -> str | None:
    """The known name that looks most like `word` (`gpt_125` -> `gpt_125m`); None where none comes close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def near_key(key: str, known: Collection[str]) -> str | None:
    """As `near_miss` for dotted keys; a bare or misplaced last part counts too (`model.lr` -> `optim.lr`)."""
    last = key.rpartition(".")[2]
    same_last = [name for name in known if name.rpartition(".")[2] == last]
    if len(same_last) == 1:
        return same_last[0]
    if "." not in key:
        by_last = {name.rpartition(".")[2]: name for name in known if "." in name}
        near_last = near_miss(key, set(by_last))
        return near_miss(key, {name for name in known if "." not in name}) or (
            by_last[near_last] if near_last else None
        )
    return near_miss(key, same_last or known)


def not_known(what: str, word: str, known: Collection[str]) -> str:
    """`model=gpt_125 is not known; did you mean gpt_125m? known: gpt_125m, ...`; `what` is its start."""
    near = near_miss(word, known)
    named = [*known][:MAX_NAMED]
    more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
    hint = f"did you mean {near}? " if near else ""
    return f"{what} is not known; {hint}known: {', '.join(named)}{more}"
