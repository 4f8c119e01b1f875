"""A data set on disk: its columns, its Parquet files, its frames, and random access to windows."""
