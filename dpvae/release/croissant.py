"""croissant.json: the release described for dataset search engines (MLCommons Croissant 1.0, JSON-LD).

Written from the schema and the file digests alone; ``mlcroissant`` reads it but is not needed to write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dpvae.release.card import nouns
from dpvae.release.certificate import Certificate
from dpvae.report.source import schema_columns

CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "samplingRate": "cr:samplingRate",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}
PARQUET = "application/x-parquet"  # as mlcroissant spells it; the registered name is not read by it
ENCODINGS = {".parquet": PARQUET, ".npz": "application/zip"}  # an NPZ is a ZIP of arrays


def croissant(certificate: Certificate, schema: Mapping[str, Any], data: Mapping[str, tuple[str, int]]) -> bytes:
    """The JSON-LD of a release whose data files are ``data``: name -> (sha256, bytes)."""
    first = sorted(data)[0]
    document = {
        "@context": CONTEXT, "@type": "sc:Dataset", "name": f"{certificate.lineage.run}-synthetic",
        "description": certificate.sentence, "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": "1.0.0", "datePublished": certificate.lineage.issued[:10],
        "keywords": ["synthetic", "differential privacy"],
        "distribution": [{"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name,
                          "contentSize": f"{size} B", "encodingFormat": _encoding(name), "sha256": digest}
                         for name, (digest, size) in sorted(data.items())],
        "recordSet": [] if _encoding(first) != PARQUET else [{"@type": "cr:RecordSet", "@id": "rows", "name": "rows",
                       "description": f"{certificate.scope.rows_released} synthetic {nouns(schema)[1]}s",
                       "field": [_field(i, name, column, first)
                                 for i, (name, column) in enumerate(schema_columns(schema))]}],
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _encoding(name: str) -> str:
    """What a data file is; Croissant describes the fields of Parquet, and has no words for those of an NPZ."""
    return ENCODINGS.get(name[name.rfind("."):], "application/octet-stream")


def _field(index: int, name: str, column: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Croissant allows no blanks in an ``@id``, and a column may be called anything."""
    ident = f"rows/{index}-{re.sub('[^A-Za-z0-9_]', '-', name)}"
    return {"@type": "cr:Field", "@id": ident, "name": name, "dataType": _type(column),
            "source": {"fileObject": {"@id": file}, "extract": {"column": name}}}


def _type(column: Mapping[str, Any]) -> str:
    """schema.org's type for the column as it is written; CSV columns by their kind, others by their dtype."""
    kind, dtype = str(column.get("kind")), str(column.get("dtype"))
    if dtype == "csv":
        return {"integer": "sc:Integer", "continuous": "sc:Float", "boolean": "sc:Boolean"}.get(kind, "sc:Text")
    for prefix, name in (("int", "sc:Integer"), ("uint", "sc:Integer"), ("double", "sc:Float"), ("float", "sc:Float"),
                         ("halffloat", "sc:Float"), ("decimal", "sc:Float"), ("bool", "sc:Boolean"),
                         ("date", "sc:Date"), ("timestamp", "sc:DateTime"), ("time", "sc:Time")):
        if dtype.startswith(prefix):
            return name
    return "sc:Text"
