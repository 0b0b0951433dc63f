"""From text to masked batches: sources, tokenizer, packed token files, masks."""
