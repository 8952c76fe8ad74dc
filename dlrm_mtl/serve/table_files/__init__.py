"""The tables of a bundle or a run as files for other programs: Parquet and safetensors."""
