"""What a published table says about itself in its own metadata: a few facts of the certificate, as text.

They stand in the footer of every Parquet file, in the summary of an Iceberg snapshot, in the commit of a Delta table.
They prove nothing alone; they name the certificate that does, and ``dpvae verify`` compares them with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from dpvae.release.certificate import Certificate
from dpvae.report.source import NONE

CERTIFICATE, RELEASE, FOLDER = "dpvae.certificate.sha256", "dpvae.release", "dpvae.release.folder"
SOURCE_TABLE, SOURCE_SNAPSHOT = "dpvae.source.table", "dpvae.source.snapshot-id"


def of(certificate: Certificate, source: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The marks of a release; ``source``: table and snapshot it was trained on, where that was a lake table.

    Numbers are written so that they read back as they are.
    """
    lineage = certificate.lineage
    marks = {
        CERTIFICATE: hashlib.sha256(certificate.to_bytes()).hexdigest(),
        "dpvae.epsilon": repr(certificate.claim.epsilon.upper), "dpvae.delta": repr(certificate.claim.delta),
        "dpvae.rows": str(certificate.scope.rows_released), "dpvae.run": lineage.run,
        "dpvae.dataset": lineage.dataset, "dpvae.ledger.head": certificate.evidence.ledger_head,
        "dpvae.model.sha256": certificate.evidence.model_sha256, "dpvae.decoding-seed": str(lineage.decoding_seed),
        SOURCE_TABLE: (source or {}).get("table") or NONE, SOURCE_SNAPSHOT: (source or {}).get("snapshot") or NONE,
    }
    return {name: str(value) for name, value in marks.items()}
