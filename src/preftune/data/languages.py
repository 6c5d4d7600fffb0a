"""Names of languages: some datasets write `English`, others `en`; both mean the same."""

_CODES = (
    "arabic:ar chinese:zh czech:cs danish:da dutch:nl english:en finnish:fi french:fr german:de greek:el hebrew:he "
    "hindi:hi hungarian:hu indonesian:id italian:it japanese:ja korean:ko norwegian:no persian:fa polish:pl "
    "portuguese:pt romanian:ro russian:ru spanish:es swedish:sv thai:th turkish:tr ukrainian:uk vietnamese:vi"
)
LANGUAGES: dict[str, str] = {name: code for name, _, code in (entry.partition(":") for entry in _CODES.split())}


def language_code(language: str) -> str:
    """`English`, `EN` and `en` → `en`; what is not in the list stays, in small letters."""
    folded = language.strip().casefold()
    return LANGUAGES.get(folded, folded)
