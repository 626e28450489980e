"""The released model as a folder that the Hugging Face hub reads: safetensors, config.json, and a card with metadata.

    write_model(Path("runs/adult1/public"), Path("release/adult/model"), certificate)
    vae, schema = dpvae.release.sample.load_public(Path("release/adult/model"))

Publishing the model costs no more than publishing rows: both follow from the same events. It is written on request
(``dpvae release with_model=true``), because who has the model can draw rows, scores and conditions without end.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from dpvae import __version__
from dpvae.errors import ReleaseError
from dpvae.files import read_json, write_bytes
from dpvae.release.certificate import Certificate

WEIGHTS, SHAPE, CARD = "model.safetensors", "config.json", "README.md"
TAGS = {"table": "tabular"}  # others are called by their kind
TEXTS = ("model.json", "tokens.json")  # what a model of texts is loaded with besides
USE = {"table": ("from dpvae.release.sample import Sampler, load_public",
                 'vae, schema = load_public(Path("model"))\nrows = Sampler(vae, schema, seed=0).rows(1000)'),
       "text": ("from dpvae.release.texts import TextModel",
                'model = TextModel.load(Path("model"))\ntexts, labels = next(model.blocks(1000, seed=0))')}


def write_model(public: Path, folder: Path, certificate: Certificate) -> None:
    """``folder`` with the model of a run's ``public`` folder; :class:`ReleaseError` where it has none of this form."""
    if not all((public / name).is_file() for name in (WEIGHTS, "model.json", "schema.json")):
        raise ReleaseError("with_model=true: the run has no model of this form (public/model.safetensors, model.json)")
    shape = read_json(public / "model.json")
    folder.mkdir()
    shutil.copyfile(public / WEIGHTS, folder / WEIGHTS)
    shutil.copyfile(public / "schema.json", folder / "schema.json")
    for name in TEXTS if shape.get("class") == "TextVAE" else ():
        shutil.copyfile(public / name, folder / name)
    config = {"model_type": "dpvae", "architectures": [shape.get("class")], "dpvae_version": __version__,
              "model": shape, "differential_privacy": privacy(certificate)}
    write_bytes(folder / SHAPE, (json.dumps(config, indent=2) + "\n").encode())
    kind = str(read_json(public / "schema.json").get("kind", "table"))
    write_bytes(folder / CARD, model_card(certificate, kind).encode())


def privacy(certificate: Certificate) -> dict[str, Any]:
    """The guarantee, for a program."""
    claim, scope = certificate.claim, certificate.scope
    return {"epsilon": claim.epsilon.upper, "delta": claim.delta, "unit": claim.unit,
            "neighbouring": claim.neighbouring, "rows": scope.rows}


def model_card(certificate: Certificate, kind: str = "table") -> str:
    """README.md: the metadata block that the hub indexes, the guarantee, how to use it, and what it does not cover."""
    metadata = {"library_name": "dpvae", "license": "other", "license_name": "set-by-the-owner-of-the-data",
                "tags": ["differential-privacy", "synthetic-data", "variational-autoencoder",
                         TAGS.get(kind, kind), "anomaly-detection"],
                "differential_privacy": privacy(certificate)}
    imports, use = USE.get(kind, USE["table"])
    gaps = "\n".join(f"- **{gap.topic}.** {gap.statement}" for gap in certificate.not_covered)
    return (f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# {certificate.lineage.run}\n\n"
            f"**{certificate.sentence}**\n\n"
            "A variational autoencoder that was trained under differential privacy. Drawing rows from it, scoring rows "
            "with it and conditioning it cost no more privacy, however often. The certificate beside this folder lists "
            "every access to the private rows; `dpvae verify` checks it.\n\n## Use\n\n"
            f"```python\nfrom pathlib import Path\n\n{imports}\n\n{use}\n```\n\n"
            "A score of somebody's row is about that row, and as private as it.\n\n"
            f"## What the guarantee does not cover\n\n{gaps}\n")
