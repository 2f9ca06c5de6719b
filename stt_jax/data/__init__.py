"""Raw log -> prepared log -> batches."""
