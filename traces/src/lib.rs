//! Routing traces: formats, importers, generators and statistics.
