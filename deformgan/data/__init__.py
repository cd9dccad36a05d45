"""Readers, one a file, and the pipeline that makes their frames into batches."""
