"""Caption tokens as the official caption scorer makes them, without Java.

The reference is Stanford's Penn Treebank tokenizer (CoreNLP 3.4.1, lower-casing) followed by
``pycocoevalcap``'s list of dropped marks. The rules below were found by asking that program, not
by reading it; ``tests/test_metrics_ptb.py`` asks again on random captions where Java is present.
Known distance: scripts whose vowels are combining signs (Devanagari, Tamil, …) and rare symbols.

Example:
    >>> ptb_tokens("Two (2) dogs -- one isn't brown!")
    ['two', '-lrb-', '2', '-rrb-', 'dogs', 'one', 'is', "n't", 'brown']
"""

from __future__ import annotations

import re

DROPPED = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "…", ";"))
"""Tokens that do not count. Brackets do: they are lower-case by the time the list is read."""

_DROPPED_RUN = re.compile(r"-{2,4}|\.{2,}")  # longer dashes are rules, and stay

_SPELLED = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"£": "#", "€": "$", "¤": "$", "₠": "$", "¢": "cents"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'},
}

# What the lexer treats alike: quotes that can be apostrophes, the others, and long dashes.
_ALIKE = str.maketrans(
    {c: "'" for c in "‘’‛‹›\x91\x92"}
    | {c: '"' for c in "“”«»\x93\x94"}
    | {c: "--" for c in "–—―\x96\x97"}
    | {"\u00ad": ""}
)
# Signs below U+2C00 that it does not know, and all above that are no letters: as good as a space.
_UNKNOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2000-\u200f\u2012\u2024\u2025\u2027-\u202f\u203c\u203d\u2043"
    "\u2045-\u206f\u20a1-\u20ab\u20ad-\u20c0\u20d0-\u20f0\u2150-\u2152\u215f-\u218b"
    "\u3000-\u3004\u3007-\u3030\ufe00-\ufe0f\ud800-\udfff\U00010000-\U0010ffff]"
)

_NOT_LETTERS = r"²³¹¼-¾⁰-₎⅐-⅞①-⒛⓪-⓿❶-➓"  # alphanumeric to Python, symbols to the lexer
_L = rf"(?:[^\W\d_{_NOT_LETTERS}]|[\u0300-\u036f])"
_A = rf"(?:[^\W_{_NOT_LETTERS}]|[\u0300-\u036f])"  # letter or digit

# Words that keep their full stop: in any case, only with a capital, and only before a number.
_ABBREVIATIONS = """
al az cf co ct dr ft ga jr ky la lt md mo mr ms mt ph rd rt sq sr st va vs vt wm
adj adm adv ala apr aug ave bhd cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri
gen gov hon inc ind jan jos jul jun kan ltd maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte
pty pvt rep rev sen sep seq sfc sgt spc ste sys tel thu tue wed wis wyo prof assoc asst corp bros
dept univ calif conn minn mich mont wisc tenn ariz colo okla penn kans tues thurs sept capt cmdr
reps sens messrs pres supt brig insp treas blvd natl intl elec bldg mlle lieut govs atty attys
"""
_CAPITALISED = "pa ark del ill ore tex mass miss wash"
_BEFORE_NUMBERS = "art ca figs fig nos no op pp prop"


def _either_case(listed: str, lower: bool = True) -> str:
    """One pattern for words in title and upper case, and in lower case if asked for."""
    words = listed.split()
    spelled = {v for w in words for v in (w.title(), w.upper())}
    if lower:
        spelled |= set(words)
    return "|".join(sorted(spelled, key=lambda w: (-len(w), w)))


_J = rf"['-/]?{_A}"  # what joins a word to the next
_NUMBER = r"(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)"
_ACRONYM = rf"[A-Za-z](?:\.[A-Za-z])+(?:\.|(?!{_A}))|[Pp][Hh]\.[Dd]\."
_ABBREVIATION = (
    rf"(?:{_either_case(_ABBREVIATIONS)}|{_either_case(_CAPITALISED, lower=False)}|[A-Za-z])\."
    rf"|(?:{_either_case(_BEFORE_NUMBERS)})\.(?=\s*\d|[,;:])"
)
_HYPHENED = rf"{_A}+(?:[-_‐‑֊]{_A}+)*"
_PATTERNS = (
    r"<(?:[!?][A-Za-z-][^<>]*|/?[A-Za-z][A-Za-z0-9:.-]*"
    r"(?:\s+[A-Za-z][A-Za-z0-9:.-]*(?:=[\"'][^\"'<>]*[\"'])?)*\s*/?)\s*>",  # a tag
    r"https?://[^\s\"<>|()]*[^\s\"<>|.!?(){},-]",
    r"www\.(?:[^\s\"<>|.!?(){},]+\.)+[A-Za-z]{2,4}[A-Za-z0-9-]*(?:/[^\s\"<>|()]*[^\s\"<>|.!?(){},-])?",
    r"<?[A-Za-z0-9][^\s\"<>|()@]*@(?:[^\s\"<>|().@]+\.)*[^\s\"<>|().]+>?",
    rf"@[A-Za-z_][A-Za-z_0-9]*|\#{_L}+",
    r"&(?:amp|lt|gt|quot);",
    # Telephone numbers and mixed fractions are one token, spaces and all.
    r"\(\d{2,3}\)[\s-]?\d{3,4}[\s-]?\d{3,5}|(?:\d{2,4}[\s-])?\d{2,4}[\s-]\d{3,4}[\s-]?\d{3,5}",
    r"\d{1,2}/\d{1,2}/\d{1,4}(?:-[A-Za-z]+)*|(?>(?:\d{1,4}[\s-])?\d+/\d+)(?![A-Za-z]|/[A-Za-z])",
    # Contractions without an apostrophe, and words that end where "n't" begins.
    rf"(?i:can(?=not(?!{_J}))|(?:gon|wan)(?=na(?!{_J}))|got(?=ta(?!{_J}))"
    rf"|(?:lem|gim)(?=me(?!{_J})))",
    rf"{_A}+?(?=n't)|{_A}+?(?=N'T)",
    rf"{_L}+(?='(?i:ll|re|ve)(?!{_L}))",
    # Apostrophes inside and at the ends of words.
    rf"(?i:[dlno]|qu)'{_L}{{2,}}(?:-{_A}+)*|(?![IY])[A-Z]'{_L}{{2,}}|[Cc]'mon|[CcMmHhNnEeOo](?:ap'n|a'am|at'l"
    r"|allowe'en|e'er|'er)(?![A-Za-z])",
    rf"(?i:[dlj]'|y'(?={_L})|ol'|somethin'|dunkin')",
    r"(?i:n't|'n'|'(?:em|til|cause)(?![A-Za-z])|'t(?=(?:is|was)(?:n't)?(?![A-Za-z])))",
    rf"(?i:'(?:s|m|d|n|re|ve|ll))(?!{_L})",
    r"'[2-9]0s(?!\w)|'\d\d(?=[\s.,!?)]|$)",
    # Words with points and strokes in them.
    rf"(?:{_ACRONYM}|{_ABBREVIATION})(?:-(?:{_ACRONYM}|[A-Za-z0-9]+))+"
    rf"|[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*-(?:{_ACRONYM}|{_ABBREVIATION}(?=[,;:]))",
    rf"(?:[A-Za-z](?:\.[A-Za-z])+|[Pp][Hh]\.[Dd])\.(?!{_L})|(?>{_L}{_A}*(?:[.!?]{_L}{_A}*)+)(?:-{_A}+)*|{_ACRONYM}"
    rf"|{_ABBREVIATION}(?!{_L})",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z]+)*){1,2}",
    r"[Cc]\+\+|[Cc]\#|[A-Z]{1,2}\$|[A-Z]+(?:&[A-Z]+)+",
    rf"(?>\d+(?:[.,:]\d+)+|(?:[.,:]\d+)+)(?:(?<!:\d\d)(?:-{_A}+)+)?|[-+]{_NUMBER}|{_HYPHENED}",
    # Faces, runs of marks, and any single sign.
    r"[<>]?[:;=][-o*']?[()\\{@|\[\]DPdpO](?![A-Za-z0-9])|[-^x=~<>']_[-^x=~<>']",
    r"[!?]+|\*+|_+|\#+|@+|--+|\.\.\.+|<<|>>|''|``|&\#\d+;|\S",
)
_TOKEN = re.compile("|".join(_PATTERNS))
# Where the words around a space matter: numbers in a row, "no. 5", tags with spaces.
_ACROSS = re.compile(r"\d\)?\s+[(+]?\d|\.\s+\d|<[A-Za-z/!?][^<>]*\s[^<>]*>")


def ptb_tokens(text: str) -> list[str]:
    """Split a caption into lower-case tokens, punctuation dropped, clitics apart.

    Args:
        text: one caption; a line break counts as a space.
    """
    if not text.isascii():
        text = _UNKNOWN.sub(" ", text.translate(_ALIKE))
    if "&" in text:
        text = text.replace("&nbsp;", " ").replace("&apos;", "'")
    if _ACROSS.search(text):
        return _scan(text)
    tokens: list[str] = []
    for word in text.split():
        known = _SEEN.get(word)
        if known is None:
            known = _scan(word)
            if len(_SEEN) < _MOST_SEEN:
                _SEEN[word] = known
        tokens += known
    return tokens


_SEEN: dict[str, list[str]] = {}
_MOST_SEEN = 200_000  # captions use the same few words over and over


def _scan(text: str) -> list[str]:
    tokens = []
    for token in _TOKEN.findall(text):
        token = _SPELLED.get(token, token.lower())
        if token not in DROPPED and not _DROPPED_RUN.fullmatch(token):
            tokens.append(_inner(token) if len(token) > 1 else token)
    return tokens


def _inner(token: str) -> str:
    """Brackets spelled out and spaces made firm inside a token of several signs."""
    if token.isalnum():
        return token
    token = re.sub(r"\s", "\u00a0", token)
    if token[0] in "(>:;=":
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    return token


def tokenize(caption: str) -> str:
    """The tokens of a caption with single spaces between them; see :func:`ptb_tokens`."""
    return " ".join(ptb_tokens(caption))
