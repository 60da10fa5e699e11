"""Texts: UTF-8 bytes, or the tokens of a vocabulary."""

from mmmask.hooks import Register, hookimpl

MMMASK_INTERFACE = 2


@hookimpl
def register_components(register: Register) -> None:
    """Names the components; torch is not imported before they are used."""
    register("modality", "text", "mmmask_text.modality:TextModality", "texts, as bytes or tokens of a vocabulary")
    sources = "mmmask_text.sources"
    register("source", "text_files", f"{sources}:TextFilesSource", "text files, joined and cut into windows")
    register("source", "json_lines", f"{sources}:JsonLinesSource", "texts out of files with a JSON object per line")
    register("masker", "span", "mmmask_text.maskers:SpanMasker", "spans of tokens, as in SpanBERT, on one axis")
