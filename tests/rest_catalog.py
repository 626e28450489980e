"""An Iceberg REST catalog over HTTP, as small as can be: a SQLite catalog behind the routes that dpvae comes by."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.rest import TableResponse
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest

STATUS = {NoSuchTableError: 404, CommitFailedException: 409, NamespaceAlreadyExistsError: 409}


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of a catalog whose warehouse is ``folder``, and the requests that came to it."""
    catalog = load_catalog("behind", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=folder.as_uri(),
                           **{"pool_size": "1"})
    asked: list[str] = []
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes | None) -> None:
            path = self.path.partition("?")[0].removeprefix("/v1/")
            asked.append(f"{self.command} {path}")
            try:
                with one_at_a_time:
                    status, found = 200, _found(catalog, path.split("/"), body)
            except tuple(STATUS) as error:
                status, found = STATUS[type(error)], json.dumps(
                    {"error": {"message": str(error), "type": type(error).__name__, "code": STATUS[type(error)]}})
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(found.encode())

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        catalog.close()


def _found(catalog: Any, path: list[str], body: bytes | None) -> str:
    match path, body:
        case ["config"], None:
            return json.dumps({"defaults": {}, "overrides": {}})
        case ["namespaces"], None:
            return json.dumps({"namespaces": catalog.list_namespaces()})
        case ["namespaces"], bytes():
            catalog.create_namespace(tuple(json.loads(body)["namespace"]))
            return body.decode()
        case ["namespaces", space, "tables"], None:
            return json.dumps({"identifiers": [{"namespace": found[:-1], "name": found[-1]}
                                               for found in catalog.list_tables(space)]})
        case ["namespaces", space, "tables"], bytes():
            wanted = json.loads(body)
            return _told(catalog.create_table((space, wanted["name"]), Schema.model_validate(wanted["schema"])))
        case ["namespaces", space, "tables", name], None:
            return _told(catalog.load_table((space, name)))
        case ["namespaces", space, "tables", name], bytes():
            change = CommitTableRequest.model_validate_json(body)
            return catalog.commit_table(catalog.load_table((space, name)), change.requirements, change.updates
                                        ).model_dump_json()
    raise AssertionError(path)


def _told(table: Any) -> str:
    return TableResponse(metadata=table.metadata, **{"metadata-location": table.metadata_location}).model_dump_json()
