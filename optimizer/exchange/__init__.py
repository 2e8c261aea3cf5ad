"""Other people's formats: importers to our documents, exporters from a plan."""
