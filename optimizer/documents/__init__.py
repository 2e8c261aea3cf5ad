"""YAML and JSON documents to domain values, and back."""

from optimizer.documents.catalogue import Catalogue, catalogue
from optimizer.documents.faults import DocumentFaults, Fault
from optimizer.documents.load import Documents, load

__all__ = ["Catalogue", "DocumentFaults", "Documents", "Fault", "catalogue", "load"]
