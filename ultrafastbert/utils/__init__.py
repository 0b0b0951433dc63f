"""Small helpers without knowledge of models: settings, validation, sizes, tables, figures, timing, files, errors."""
