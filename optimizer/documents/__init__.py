"""YAML and JSON documents to domain values, and back."""

from optimizer.documents.catalogue import Catalogue, catalogue
from optimizer.documents.dump import (
    json_text,
    sha256,
    state_document,
    write_json,
    write_text,
    yaml_text,
)
from optimizer.documents.faults import DocumentFaults, Fault
from optimizer.documents.load import Documents, load
from optimizer.documents.plan_json import objectives_json, plan_json, replica_json
from optimizer.documents.plan_read import read_plan

__all__ = [
    "Catalogue",
    "DocumentFaults",
    "Documents",
    "Fault",
    "catalogue",
    "json_text",
    "load",
    "objectives_json",
    "plan_json",
    "read_plan",
    "replica_json",
    "sha256",
    "state_document",
    "write_json",
    "write_text",
    "yaml_text",
]
